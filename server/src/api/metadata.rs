//! Health, and what the server and its models are.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;

use super::errors::Failed;
use super::reply::json;
use super::{Api, EXTENSIONS};
use crate::error::Error;
use crate::repository;
use crate::tensor::TensorSpec;

/// What runs the models, in the protocol's words.
pub(super) const PLATFORM: &str = "wasm_component";

#[derive(Serialize)]
struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; EXTENSIONS.len()],
}

pub(super) async fn server() -> Response {
    json(
        StatusCode::OK,
        &ServerMetadata {
            name: "wisp",
            version: env!("CARGO_PKG_VERSION"),
            extensions: EXTENSIONS,
        },
    )
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

pub(super) async fn live() -> Response {
    json(StatusCode::OK, &Live { live: true })
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

/// Ready once no model is loading any more: a failed one does not take the others down.
pub(super) async fn ready(State(api): State<Api>) -> Response {
    let ready = api.inference().repository.is_settled();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Ready { ready })
}

#[derive(Serialize)]
struct Models<'a> {
    models: Vec<&'a str>,
}

pub(super) async fn models(State(api): State<Api>) -> Response {
    let models = api.inference().repository.models();
    let ready = models
        .iter()
        .filter(|model| model.main_version().is_some_and(|version| version.is_ready()));
    json(StatusCode::OK, &Models { models: ready.map(|model| model.name.as_str()).collect() })
}

#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: Vec<String>,
    platform: &'static str,
    inputs: Vec<SpecMetadata<'a>>,
    outputs: Vec<SpecMetadata<'a>>,
}

#[derive(Serialize)]
struct SpecMetadata<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [i64],
}

impl<'a> From<&'a TensorSpec> for SpecMetadata<'a> {
    fn from(spec: &'a TensorSpec) -> Self {
        Self { name: &spec.name, datatype: spec.datatype.name(), shape: &spec.shape }
    }
}

pub(super) async fn model(State(api): State<Api>, path: ModelPath) -> Result<Response, Failed> {
    let model = api.inference().repository.model(path.model()?)?;
    let revision = model.version(path.version())?.revision().await?;
    let metadata = ModelMetadata {
        name: &model.name,
        versions: model.available(),
        platform: PLATFORM,
        inputs: revision.contract.inputs.iter().map(Into::into).collect(),
        outputs: revision.contract.outputs.iter().map(Into::into).collect(),
    };
    Ok(json(StatusCode::OK, &metadata))
}

#[derive(Serialize)]
struct ModelReady<'a> {
    name: &'a str,
    ready: bool,
}

/// Says so at once while the model is loading; a failed one answers with its reason. A cold
/// version is ready: it was examined when it was deployed, and is loaded when it is asked for.
pub(super) async fn model_ready(
    State(api): State<Api>,
    path: ModelPath,
) -> Result<Response, Failed> {
    let model = api.inference().repository.model(path.model()?)?;
    let version = model.version(path.version())?;
    let state = version.state();
    let ready = ModelReady { name: &model.name, ready: version.is_ready() };
    match state {
        repository::State::Failed(_) => {
            version.revision().await?;
            Ok(json(StatusCode::OK, &ModelReady { ready: true, ..ready }))
        }
        _ if ready.ready => Ok(json(StatusCode::OK, &ready)),
        _ => Ok(json(StatusCode::SERVICE_UNAVAILABLE, &ready)),
    }
}

/// `{model}` and, in half of the routes, `{version}`, percent-decoded.
pub(super) struct ModelPath(HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        // axum's own rejection would be plain text.
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(names)| Self(names))
            .map_err(|rejection| Failed(Error::InvalidInput(rejection.body_text())))
    }
}

impl ModelPath {
    pub(super) fn model(&self) -> Result<&str, Error> {
        self.0
            .get("model")
            .map(String::as_str)
            .ok_or_else(|| Error::Internal("a route without a model".into()))
    }

    pub(super) fn version(&self) -> Option<&str> {
        self.0.get("version").map(String::as_str)
    }
}
