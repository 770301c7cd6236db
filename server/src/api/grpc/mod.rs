//! The protocol over gRPC, on the same port as HTTP: the same models, limits and errors.

mod codec;
mod health;
mod incoming;
mod tensors;
mod views;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::middleware::map_request_with_state;
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::callers::Caller;
use super::classification::classify;
use super::{Api, EXTENSIONS, logging, repository, statistics};
use crate::error::Error;
use crate::repository::{Model, Version};
use crate::tensor::TensorSpec;
use health::Health;
use proto::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use tensors::{read_request, write_response};

/// What the build made of proto/inference.proto.
#[expect(clippy::allow_attributes, clippy::enum_variant_names, reason = "generated")]
mod proto {
    tonic::include_proto!("inference");
}

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));

/// Of an answer beside its tensors: names, shapes and framing.
const OVERHEAD_BYTES: usize = 1 << 20;

/// The services as routes.
///
/// # Panics
/// Never: the descriptors are those of this build.
pub(super) fn routes(api: Api) -> Router<Api> {
    let limit = api.options().body_limit + OVERHEAD_BYTES;
    let health = Health(api.clone());
    let watched = map_request_with_state(api.clone(), incoming::watch);
    let inference = GrpcInferenceServiceServer::new(Service(api))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate);
    let health = tonic_health::pb::health_server::HealthServer::new(health);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().expect("descriptors of this build");
    let v1alpha = reflection().build_v1alpha().expect("descriptors of this build");
    Router::new()
        .route_service("/inference.GRPCInferenceService/{method}", inference)
        .route_service("/grpc.health.v1.Health/{method}", health)
        .route_service("/grpc.reflection.v1.ServerReflection/{method}", v1)
        .route_service("/grpc.reflection.v1alpha.ServerReflection/{method}", v1alpha)
        .layer(watched)
}

struct Service(Api);

/// The protocol's way to say "whichever": an empty string.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Of a request to load or unload: KServe's clients send it where Triton's send a repository,
/// of which there is one here.
fn model_name<'a>(repository: &'a str, model: &'a str) -> &'a str {
    if model.is_empty() { repository } else { model }
}

impl Service {
    fn model(&self, name: &str) -> Result<Arc<Model>, Error> {
        self.0.inference().repository.model(name)
    }

    fn version(&self, name: &str, version: &str) -> Result<Arc<Version>, Error> {
        self.model(name)?.version(some(version))
    }

    async fn answer(
        &self,
        request: proto::ModelInferRequest,
        timeout: Option<Duration>,
        caller: &Caller,
    ) -> Result<proto::ModelInferResponse, Error> {
        let bytes = request.encoded_len();
        // Held as long as what it stands for, raw or typed.
        let _room = self.0.bodies().hold(bytes)?;
        let model = self.model(&request.model_name)?;
        let picked = model.pick(some(&request.model_version)).await?;
        let limit = picked.revision.body_limit;
        // Names and shapes are not the body's.
        if bytes > limit.saturating_add(OVERHEAD_BYTES) {
            return Err(Error::TooLarge { limit });
        }
        let id = request.id.clone();
        let wants_final = request.parameters.get(FINAL_WANTED).is_some_and(|parameter| {
            parameter.parameter_choice
                == Some(proto::infer_parameter::ParameterChoice::BoolParam(true))
        });
        let (mut request, form) = read_request(request).map_err(Error::InvalidInput)?;
        request.timeout = timeout;
        request.key = caller.key();
        let revision = picked.revision.clone();
        let mut response = self.0.answer(&model, picked, request, &id).await?;
        classify(&mut response, &form, &revision)?;
        let mut written = write_response(&model.name, revision.version.clone(), id, response);
        if wants_final {
            // Each request here has one response, which is its last.
            written.parameters.insert(FINAL.to_owned(), tensors::boolean(true));
        }
        Ok(written)
    }
}

/// How long the client waits, as gRPC's header says it: at most eight digits and a unit. What
/// cannot be read is ignored, as the client watches the clock itself.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

const FINAL_WANTED: &str = "triton_enable_empty_final_response";
const FINAL: &str = "triton_final_response";

type Answers = Pin<Box<dyn Stream<Item = Result<proto::ModelStreamInferResponse, Status>> + Send>>;

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        let ready = self.0.inference().repository.is_settled();
        Ok(Response::new(proto::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        let request = request.into_inner();
        // What is not known is not ready: the reference server's clients expect no error here.
        let version = self.version(&request.name, &request.version);
        let ready = version.is_ok_and(|version| version.is_ready());
        Ok(Response::new(proto::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        Ok(Response::new(proto::ServerMetadataResponse {
            name: "wisp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let model = self.model(&request.name)?;
        let revision = model.version(some(&request.version))?.revision().await?;
        let tensors = |specs: &[TensorSpec]| {
            let tensors = specs.iter().map(|spec| proto::model_metadata_response::TensorMetadata {
                name: spec.name.clone(),
                datatype: spec.datatype.name().to_owned(),
                shape: spec.shape.clone(),
            });
            tensors.collect()
        };
        Ok(Response::new(proto::ModelMetadataResponse {
            name: model.name.clone(),
            versions: model.available(),
            platform: super::metadata::PLATFORM.to_owned(),
            inputs: tensors(&revision.contract.inputs),
            outputs: tensors(&revision.contract.outputs),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<proto::ModelInferRequest>,
    ) -> Result<Response<proto::ModelInferResponse>, Status> {
        let (timeout, caller) = (timeout(request.metadata()), Caller::of(request.extensions()));
        Ok(Response::new(self.answer(request.into_inner(), timeout, &caller).await?))
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let service = (Service(self.0.clone()), Caller::of(request.extensions()));
        // The whole stream's.
        let ends = timeout(request.metadata()).map(|timeout| Instant::now() + timeout);
        // One after the other: answers come in the order of their requests.
        let answers = stream::unfold(
            (request.into_inner(), service),
            move |(mut requests, service): (Streaming<_>, (Self, Caller))| async move {
                let request = match requests.message().await {
                    Ok(None) => return None,
                    Ok(Some(request)) => request,
                    Err(status) => return Some((Err(status), (requests, service))),
                };
                let id = request.id.clone();
                let timeout = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
                let answer = match service.0.answer(request, timeout, &service.1).await {
                    Ok(response) => proto::ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(response),
                    },
                    // With its id, so that the client knows whose error it is.
                    Err(error) => proto::ModelStreamInferResponse {
                        error_message: Status::from(error).message().to_owned(),
                        infer_response: Some(proto::ModelInferResponse {
                            id,
                            ..Default::default()
                        }),
                    },
                };
                Some((Ok(answer), (requests, service)))
            },
        );
        Ok(Response::new(answers.boxed()))
    }

    async fn model_config(
        &self,
        request: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let revision = self.version(&request.name, &request.version)?.revision().await?;
        let config = views::model_config(&request.name, &revision.contract);
        Ok(Response::new(proto::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<proto::ModelStatisticsRequest>,
    ) -> Result<Response<proto::ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let (name, version) = (some(&request.name), some(&request.version));
        let versions = statistics::versions(&self.0, name, version)?;
        let model_stats = versions.iter().map(|version| views::model_statistics(version)).collect();
        Ok(Response::new(proto::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let versions = statistics::versions(&self.0, None, None)?;
        let models = versions.iter().filter(|version| !only_ready || version.is_ready());
        let models = models.map(|version| {
            let (state, reason) = repository::state(version);
            proto::repository_index_response::ModelIndex {
                name: version.model.clone(),
                version: version.label.clone(),
                state: state.to_owned(),
                reason,
            }
        });
        Ok(Response::new(proto::RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<proto::RepositoryModelLoadRequest>,
    ) -> Result<Response<proto::RepositoryModelLoadResponse>, Status> {
        let request = request.into_inner();
        let model = model_name(&request.repository_name, &request.model_name);
        repository::load_model(&self.0, model, request.parameters.keys()).await?;
        Ok(Response::new(proto::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Result<Response<proto::RepositoryModelUnloadResponse>, Status> {
        let request = request.into_inner();
        let model = model_name(&request.repository_name, &request.model_name);
        repository::unload_model(&self.0, model)?;
        Ok(Response::new(proto::RepositoryModelUnloadResponse {}))
    }

    async fn trace_setting(
        &self,
        request: Request<proto::TraceSettingRequest>,
    ) -> Result<Response<proto::TraceSettingResponse>, Status> {
        let proto::TraceSettingRequest { settings, model_name } = request.into_inner();
        let model = some(&model_name).map(|name| self.model(name)).transpose()?;
        let model = model.as_ref().map(|model| model.name.as_str());
        let changes = views::trace_changes(settings);
        let view = match changes.is_empty() {
            true => self.0.traces().view(model),
            false => {
                self.0.check_control("change trace settings")?;
                self.0.traces().change(model, &changes)?
            }
        };
        Ok(Response::new(views::trace_settings(view)))
    }

    async fn log_settings(
        &self,
        request: Request<proto::LogSettingsRequest>,
    ) -> Result<Response<proto::LogSettingsResponse>, Status> {
        let changes = views::log_changes(request.into_inner().settings)?;
        let view = match changes.is_empty() {
            true => logging::view(),
            false => {
                self.0.check_control("change log settings")?;
                logging::change(&changes)?
            }
        };
        Ok(Response::new(views::log_settings(&view)))
    }
}
