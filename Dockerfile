# The server alone, some 40 MB: mount bundles at /models.
#   docker build -t wisp . && docker run -p 8000:8000 -v ./models:/models wisp

FROM rust:1.95-bookworm AS build
RUN rustup target add wasm32-unknown-unknown
WORKDIR /wisp
COPY . .
RUN guests/build.sh tensor && cargo build --release --locked -p wisp

FROM debian:bookworm-slim
RUN useradd --system --create-home wisp
COPY --from=build /wisp/target/release/wisp /usr/local/bin/wisp
USER wisp
ENV WISP_LISTEN=0.0.0.0:8000
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["wisp"]
CMD ["serve", "/models"]
