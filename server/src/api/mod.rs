//! The Open Inference Protocol over HTTP. Only this room names axum, hyper and JSON; it turns
//! wire forms into [`InferRequest`](crate::infer::InferRequest)s and back, and decides nothing.

mod admin;
mod binary;
mod body;
mod errors;
mod golden;
mod grpc;
mod infer;
mod json_read;
mod json_write;
mod listener;
mod metadata;
mod openapi;
mod reply;
mod repository;
mod statistics;
mod tensor_schema;

pub use admin::{Admin, AdminOptions};
pub use golden::check_golden;
pub use infer::infer_once;
pub use listener::serve;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::{get, post};

use crate::error::Error;
use crate::infer::Inference;
use errors::Failed;

/// What the handlers share.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    inference: Arc<Inference>,
    options: ApiOptions,
    bodies: body::Room,
}

/// The protocol's extensions; only what is complete is named.
const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "model_configuration", "statistics"];

/// Bounds on what clients send.
#[derive(Debug, Clone, Copy)]
pub struct ApiOptions {
    /// A longer body is refused.
    pub body_limit: usize,
    /// A body that takes longer to arrive is given up.
    pub body_timeout: Duration,
}

impl Api {
    pub fn new(inference: Arc<Inference>, options: ApiOptions) -> Self {
        let bodies = body::Room::new(options);
        Self(Arc::new(Shared { inference, options, bodies }))
    }

    fn inference(&self) -> &Arc<Inference> {
        &self.0.inference
    }

    fn options(&self) -> ApiOptions {
        self.0.options
    }

    fn bodies(&self) -> &body::Room {
        &self.0.bodies
    }

    /// All routes; each is in `server.openapi.json`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/openapi.json", get(openapi::server))
            .route("/docs", get(openapi::page))
            .route("/v2", get(metadata::server))
            .route("/v2/health/live", get(metadata::live))
            .route("/v2/health/ready", get(metadata::ready))
            .route("/v2/models", get(metadata::models))
            .route("/metrics", get(statistics::metrics))
            .route("/v2/models/stats", get(statistics::all))
            .route("/v2/models/{model}/stats", get(statistics::one))
            .route("/v2/models/{model}/versions/{version}/stats", get(statistics::one))
            .route("/v2/models/{model}", get(metadata::model))
            .route("/v2/repository/index", post(repository::index))
            .route("/v2/models/{model}/config", get(repository::config))
            .route("/v2/models/{model}/versions/{version}/config", get(repository::config))
            .route("/v2/models/{model}/ready", get(metadata::model_ready))
            .route("/v2/models/{model}/openapi.json", get(openapi::model))
            .route("/v2/models/{model}/versions/{version}/openapi.json", get(openapi::model))
            .route("/v2/models/{model}/infer", post(infer::infer))
            .route("/v2/models/{model}/versions/{version}", get(metadata::model))
            .route("/v2/models/{model}/versions/{version}/ready", get(metadata::model_ready))
            .route("/v2/models/{model}/versions/{version}/infer", post(infer::infer))
            .merge(grpc::routes(self.clone()))
            .fallback(async |uri: Uri| Failed(Error::UnknownPath(uri.path().to_owned())))
            .method_not_allowed_fallback(async |method: Method, uri: Uri| {
                Failed(Error::WrongMethod {
                    method: method.to_string(),
                    path: uri.path().to_owned(),
                })
            })
            .with_state(self)
    }
}
