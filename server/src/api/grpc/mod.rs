//! The protocol over gRPC, on the same port as HTTP: the same models, limits and errors.

mod tensors;

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, EXTENSIONS, repository, statistics};
use crate::error::Error;
use crate::infer::InferRequest;
use crate::repository::{Model, Version};
use crate::tensor::{Contract, Datatype, TensorSpec};
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
}

struct Service(Api);

/// The protocol's way to say "whichever": an empty string.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
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
    ) -> Result<proto::ModelInferResponse, Error> {
        let model = self.model(&request.model_name)?;
        let picked = model.pick(some(&request.model_version)).await?;
        let id = request.id.clone();
        // Held as long as what it stands for, raw or typed.
        let _room = self.0.bodies().hold(request.encoded_len())?;
        let wants_final = request.parameters.get(FINAL_WANTED).is_some_and(|parameter| {
            parameter.parameter_choice
                == Some(proto::infer_parameter::ParameterChoice::BoolParam(true))
        });
        let request: InferRequest = read_request(request).map_err(Error::InvalidInput)?;
        let version = picked.revision.version.clone();
        let response = self.0.inference().answer(&model.name, picked, request).await?;
        let mut written = write_response(&model.name, version, id, response);
        if wants_final {
            // Each request here has one response, which is its last.
            written.parameters.insert(FINAL.to_owned(), tensors::boolean(true));
        }
        Ok(written)
    }
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
        Ok(Response::new(self.answer(request.into_inner()).await?))
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let service = Service(self.0.clone());
        // One after the other: answers come in the order of their requests.
        let answers =
            stream::unfold((request.into_inner(), service), async |(mut requests, service)| {
                let request = match requests.message().await {
                    Ok(None) => return None,
                    Ok(Some(request)) => request,
                    Err(status) => return Some((Err(status), (requests, service))),
                };
                let id = request.id.clone();
                let answer = match service.answer(request).await {
                    Ok(response) => proto::ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(response),
                    },
                    // With its id, so that the client knows whose error it is.
                    Err(error) => proto::ModelStreamInferResponse {
                        error_message: error.to_string(),
                        infer_response: Some(proto::ModelInferResponse {
                            id,
                            ..Default::default()
                        }),
                    },
                };
                Some((Ok(answer), (requests, service)))
            });
        Ok(Response::new(answers.boxed()))
    }

    async fn model_config(
        &self,
        request: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let revision = self.version(&request.name, &request.version)?.revision().await?;
        let config = model_config(&request.name, &revision.contract);
        Ok(Response::new(proto::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<proto::ModelStatisticsRequest>,
    ) -> Result<Response<proto::ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let (name, version) = (some(&request.name), some(&request.version));
        let versions = statistics::versions(&self.0, name, version)?;
        let model_stats = versions.iter().map(|version| model_statistics(version)).collect();
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
}

fn model_config(name: &str, contract: &Contract) -> proto::ModelConfig {
    let data_type = |datatype: Datatype| tensors::data_type(datatype).into();
    let inputs = contract.inputs.iter().map(|spec| proto::ModelInput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype),
        dims: spec.shape.clone(),
    });
    let outputs = contract.outputs.iter().map(|spec| proto::ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype),
        dims: spec.shape.clone(),
    });
    proto::ModelConfig {
        name: name.to_owned(),
        platform: super::metadata::PLATFORM.to_owned(),
        backend: "wisp".to_owned(),
        max_batch_size: 0,
        input: inputs.collect(),
        output: outputs.collect(),
    }
}

fn model_statistics(version: &Version) -> proto::ModelStatistics {
    let counted = statistics::of_version(version);
    let duration = |duration: statistics::Duration| {
        Some(proto::StatisticDuration { count: duration.count, ns: duration.ns })
    };
    let spans = counted.inference_stats;
    let batches = counted.batch_stats.into_iter().map(|batch| proto::InferBatchStatistics {
        batch_size: batch.batch_size,
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    });
    proto::ModelStatistics {
        name: counted.name,
        version: counted.version,
        last_inference: counted.last_inference,
        inference_count: counted.inference_count,
        execution_count: counted.execution_count,
        inference_stats: Some(proto::InferStatistics {
            success: duration(spans.success),
            fail: duration(spans.fail),
            queue: duration(spans.queue),
            compute_input: duration(spans.compute_input),
            compute_infer: duration(spans.compute_infer),
            compute_output: duration(spans.compute_output),
            cache_hit: duration(spans.cache_hit),
            cache_miss: duration(spans.cache_miss),
        }),
        batch_stats: batches.collect(),
    }
}

/// `grpc.health.v1`: the server as a whole, or a model by its name.
struct Health(Api);

#[tonic::async_trait]
impl tonic_health::pb::health_server::Health for Health {
    async fn check(
        &self,
        request: Request<tonic_health::pb::HealthCheckRequest>,
    ) -> Result<Response<tonic_health::pb::HealthCheckResponse>, Status> {
        use tonic_health::pb::health_check_response::ServingStatus;
        let models = &self.0.inference().repository;
        let is_ready = match request.into_inner().service.as_str() {
            "" | "inference.GRPCInferenceService" => models.is_settled(),
            model => models.model(model)?.version(None)?.is_ready(),
        };
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(tonic_health::pb::HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = stream::Empty<Result<tonic_health::pb::HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<tonic_health::pb::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // Clients that get this poll, as the health protocol has it.
        Err(Status::unimplemented("watching health is not offered: ask again instead"))
    }
}
