# `make demo` and `make test` do all their set-up; the other targets are their steps.
# Needs: a Rust toolchain (rust-toolchain's minimum is in Cargo.toml), Python 3.11, curl.

CARGO_FLAGS := --release --workspace --locked
PORT ?= 8000

.PHONY: demo test conformance conformance-all chaos guests models registry build lint bench bench-http bench-start \
	bench-deployments bench-engine bench-profile bench-threads bench-wake bench-account bench-batching bench-scale \
	bench-overload bench-hostile compare soak onnx-tests engine-tests test-aarch64 engine-probe fuzz reference deny

demo: models guests build
	@./demo.sh $(PORT)

# The engine that is not in the binary is tested as PyPI's wheel has it.
test: models guests registry lint target/engine-venv/.tests
	WISP_TEST_ONNXRUNTIME=$$(ls $(CURDIR)/target/engine-venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*) \
	  cargo test $(CARGO_FLAGS)
	@$(MAKE) --no-print-directory engine-tests conformance

# Existing clients, as their users call them; after the tests, whose build it uses. With
# ASK="tritonclient.http embeddings", only those checks.
conformance: models guests build target/clients
	@target/clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@PYTHONPATH=tests target/clients/bin/python -m conformance $(ASK)

# The same after KServe's SDK and perf_analyzer are installed, which are large.
conformance-all: target/clients
	@tests/install_clients.sh
	@$(MAKE) --no-print-directory conformance

target/clients:
	@python3 -m venv target/clients

# Kills a server at a thousand random moments of a deployment; `make test` does two hundred.
chaos: guests
	WISP_CHAOS_ROUNDS=1000 cargo test $(CARGO_FLAGS) --test wisp -- chaos --nocapture

# Components are rebuilt only when a guest has changed: cargo decides.
guests:
	@guests/build.sh
	@for pair in imagenet:classify digits:classify minilm:embed; do \
	  built=target/guests/$${pair#*:}.wasm; placed=models/$${pair%:*}/guest.wasm; \
	  cmp -s $$built $$placed || cp $$built $$placed; done

models:
	@python3 models/fetch.py

registry:
	@tests/install_registry.sh

build:
	cargo build $(CARGO_FLAGS)

lint:
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --no-deps --quiet

bench: models guests
	cargo bench --workspace --locked --bench wisp

bench-start: models guests build
	@python3 benches/start.py

bench-account: models guests build
	@python3 benches/account.py

bench-http: guests build
	@python3 benches/throughput.py

bench-deployments: guests build
	@python3 benches/deployments.py

# Engines against ONNX Runtime on real models, the results written to benches/engine/RESULTS.md.
# With ARGS="--models minilm --rounds 5", only those models.
bench-engine: engine-probe target/engine-venv/.complete
	@target/engine-venv/bin/python benches/engine/bench.py $(ARGS)

# Where tract's time goes, by operator, written to benches/engine/PROFILE.md.
bench-profile: engine-probe target/engine-venv/.complete
	@target/engine-venv/bin/python benches/engine/operators.py $(ARGS)

bench-threads: engine-probe target/engine-venv/.complete
	@target/engine-venv/bin/python benches/engine/threads.py $(ARGS)

# With ARGS="--models minilm", only those models.
bench-wake: models guests build engine-probe target/engine-venv/.complete
	@target/engine-venv/bin/python benches/wake.py $(ARGS)

bench-batching: models guests build target/engine-venv/.complete
	@target/engine-venv/bin/python benches/batching.py $(ARGS)

# With ARGS="--models 1000 -- FLAG…", flags for its servers; so for the next ones.
bench-scale: models guests build
	@python3 benches/scale.py $(ARGS)

bench-overload: models guests build
	@cargo build $(CARGO_FLAGS) --example flood
	@python3 benches/overload.py --seconds $(or $(SECONDS),60) $(ARGS)

bench-hostile: models guests build
	@python3 benches/hostile.py $(ARGS)

# An hour of everything at once, after which nothing may have grown; or with SECONDS=300. Models go
# cold and are woken all the while, unless ARGS="-- FLAG…" says otherwise.
soak: models guests build
	@python3 benches/soak.py --seconds $(or $(SECONDS),3600) $(or $(ARGS),-- --idle-seconds 3 --memory-budget-mib 300)

# wisp beside FastAPI with ONNX Runtime and MLServer, the results written to
# benches/compare/RESULTS.md. With ARGS="--workloads digits", only that.
compare: models guests build target/engine-venv/.complete target/compare-venv/.complete \
	target/compare-mlserver-venv/.complete
	@target/engine-venv/bin/python benches/engine/models.py skl-forest
	@python3 benches/compare/compare.py $(ARGS)

target/compare-venv/.complete: benches/compare/requirements.txt
target/compare-mlserver-venv/.complete: benches/compare/requirements-mlserver.txt
target/compare-venv/.complete target/compare-mlserver-venv/.complete:
	@python3 -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r $<
	@touch $@

# The ONNX project's own backend tests; fails where tests/onnx/expected.json knew better. With
# ARGS=--update, notes the outcomes there.
onnx-tests: engine-probe target/engine-venv/.complete
	@target/engine-venv/bin/python tests/onnx/node_tests.py $(or $(ARGS),--check)

# What `make test` asks of the engines beside cargo's tests: half a minute of those cases, and
# real models against what ONNX Runtime answered. Their files, 170 MB once, stay under target/.
engine-tests: engine-probe target/engine-venv/.tests
	@target/engine-venv/bin/python tests/onnx/node_tests.py --check --subset --no-reference --brief
	@target/engine-venv/bin/python tests/onnx/model_tests.py

# The kernels' tests where vectors are NEON's, under an emulator unless this machine is an aarch64.
# With ARGS="-p wisp-kernels -- gemm", only those.
test-aarch64:
	@tests/aarch64.sh $(ARGS)

# Breaks small graphs at random for a while and hands them to each engine in a process that may
# die of it; what was lost is kept under target/fuzz.
fuzz:
	@cargo build $(CARGO_FLAGS) --example fuzz_onnx
	@target/release/examples/fuzz_onnx $(or $(SECONDS),60)

engine-probe:
	@cargo build $(CARGO_FLAGS) --example engine_probe

target/engine-venv/.tests: tests/onnx/requirements.txt
	@python3 -m venv target/engine-venv
	@target/engine-venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r $<
	@touch $@

target/engine-venv/.complete: benches/engine/requirements.txt target/engine-venv/.tests
	@target/engine-venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r $<
	@touch $@

# After a change to pre-processing: ONNX Runtime's answers to the guest's new tensors.
reference: models guests
	mkdir -p target/reference
	cargo run --release --locked -p wisp-guest-classify --example photo_tensor -- tests/fixtures/photos/cat.jpg target/reference/cat-tensor.f32
	target/python/bin/python -m pip install --quiet pillow==13.0.0 onnxruntime==1.32.0
	target/python/bin/python tests/fixtures/make_reference.py

deny:
	cargo deny check
