//! The Open Inference Protocol over HTTP. Only this room names axum, hyper and JSON; it turns
//! wire forms into [`InferRequest`]s and back, and decides nothing.

mod admin;
mod binary;
mod body;
mod callers;
mod classification;
mod compression;
mod errors;
mod generate;
mod golden;
mod grpc;
mod infer;
mod json;
mod listener;
mod logging;
mod metadata;
mod metrics;
mod openai;
mod openapi;
mod patient;
mod reply;
mod repository;
mod statistics;
mod tensor_schema;
mod trace;
mod untaken;
mod usage;

pub use admin::{Admin, AdminOptions};
pub use golden::check_golden;
pub use infer::infer_once;
pub use json::{read_inputs, write_elements};
pub use listener::{Patience, serve};

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::api_keys::ApiKeys;
use crate::error::Error;
use crate::infer::{InferRequest, InferResponse, Inference};
use crate::repository::{Model, Picked};
use errors::Failed;

/// What the handlers share.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    inference: Arc<Inference>,
    options: ApiOptions,
    bodies: body::Room,
    traces: trace::Traces,
    /// `None`: whoever can connect may ask.
    keys: Option<ApiKeys>,
    started: u64,
}

/// The protocol's extensions; only what is complete is named.
const EXTENSIONS: [&str; 10] = [
    "binary_tensor_data",
    "classification",
    "generate",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "trace",
];

/// Bounds on what clients send and do.
#[derive(Debug, Clone, Copy)]
pub struct ApiOptions {
    /// A longer body is refused.
    pub body_limit: usize,
    /// A body that takes longer to arrive is given up.
    pub body_timeout: Duration,
    /// Whether clients may load and unload models and change trace and log settings.
    pub client_control: bool,
}

impl Api {
    /// Where there are `keys`, who has none is answered nothing but health.
    pub fn new(inference: Arc<Inference>, options: ApiOptions, keys: Option<ApiKeys>) -> Self {
        let bodies = body::Room::new(options);
        let traces = trace::Traces::new();
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let started = since.map_or(0, |since| since.as_secs());
        Self(Arc::new(Shared { inference, options, bodies, traces, keys, started }))
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

    fn traces(&self) -> &trace::Traces {
        &self.0.traces
    }

    fn keys(&self) -> Option<&ApiKeys> {
        self.0.keys.as_ref()
    }

    /// Seconds since 1970.
    fn started(&self) -> u64 {
        self.0.started
    }

    /// Checks that clients may change the server.
    fn check_control(&self, what: &str) -> Result<(), Error> {
        match self.0.options.client_control {
            true => Ok(()),
            false => Err(Error::Forbidden(format!(
                "clients may not {what} here: the setting client-control is false"
            ))),
        }
    }

    /// Checks that clients may change the server, and that no page of another site, which a
    /// browser shows, asks for it.
    fn check_control_from(&self, headers: &HeaderMap, what: &str) -> Result<(), Error> {
        self.check_control(what)?;
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let site = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        match site.is_some_and(|(_, site)| Some(site) == host) {
            true => Ok(()),
            false => Err(Error::Forbidden(format!("pages of other sites may not {what} here"))),
        }
    }

    /// Answers one request, and traces it.
    async fn answer(
        &self,
        model: &Model,
        picked: Picked,
        request: InferRequest,
        id: &str,
    ) -> Result<InferResponse, Error> {
        let revision = picked.revision.clone();
        let result = self.inference().answer(&model.name, picked, request).await;
        self.traces().record(&model.name, &revision.version, id, &result);
        result
    }

    /// All routes; each is in `server.openapi.json`.
    pub fn router(self) -> Router {
        let router = Router::new()
            .route("/openapi.json", get(openapi::server))
            .route("/docs", get(openapi::page))
            .route("/v2", get(metadata::server))
            .route("/v2/health/live", get(metadata::live))
            .route("/v2/health/ready", get(metadata::ready))
            .route("/v2/models", get(metadata::models))
            .route("/metrics", get(metrics::metrics))
            .route("/v2/models/stats", get(statistics::all))
            .route("/v2/models/{model}/stats", get(statistics::one))
            .route("/v2/models/{model}/versions/{version}/stats", get(statistics::one))
            .route("/v2/models/{model}", get(metadata::model))
            .route("/v2/repository/index", post(repository::index))
            .route("/v2/repository/models/{model}/load", post(repository::load))
            .route("/v2/repository/models/{model}/unload", post(repository::unload))
            .route("/v2/logging", get(logging::settings).post(logging::change_settings))
            .route("/v2/trace/setting", get(trace::server_settings).post(trace::change_server))
            .route(
                "/v2/models/{model}/trace/setting",
                get(trace::model_settings).post(trace::change_model),
            )
            .route("/v2/models/{model}/generate", post(generate::generate))
            .route("/v2/models/{model}/generate_stream", post(generate::generate_stream))
            .route("/v2/models/{model}/versions/{version}/generate", post(generate::generate))
            .route(
                "/v2/models/{model}/versions/{version}/generate_stream",
                post(generate::generate_stream),
            )
            .route("/v1/embeddings", post(openai::embeddings))
            .route("/v1/models", get(openai::models))
            .route("/v1/models/{model}", get(openai::model))
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
            .fallback(async |uri: Uri| {
                failed(uri.path(), Error::UnknownPath(uri.path().to_owned()))
            })
            .method_not_allowed_fallback(async |method: Method, uri: Uri| {
                let (method, path) = (method.to_string(), uri.path().to_owned());
                failed(uri.path(), Error::WrongMethod { method, path })
            })
            .route("/usage", get(usage::usage));
        let router = match self.keys() {
            Some(_) => router.layer(from_fn_with_state(self.clone(), callers::identify)),
            None => router,
        };
        router.with_state(self)
    }
}

/// An error in the form of the protocol that `path` belongs to.
fn failed(path: &str, error: Error) -> Response {
    match path.starts_with("/v1/") {
        true => openai::Failed(error).into_response(),
        false => Failed(error).into_response(),
    }
}
