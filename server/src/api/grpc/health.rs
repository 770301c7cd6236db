//! `grpc.health.v1`: the server as a whole, or a model by its name.

use futures_util::stream;
use tonic::{Request, Response, Status};

use super::super::Api;

pub(super) struct Health(pub(super) Api);

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
