//! The protocol's repository index, and a model's configuration.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::Api;
use super::body::read_small_json;
use super::errors::Failed;
use super::metadata::{ModelPath, PLATFORM};
use super::reply::json;
use super::statistics::versions;
use crate::repository::{State as Loaded, Version};
use crate::tensor::TensorSpec;

#[derive(Deserialize, Default)]
struct IndexRequest {
    /// Only those that are ready.
    #[serde(default)]
    ready: bool,
}

#[derive(Serialize)]
struct IndexEntry {
    name: String,
    version: String,
    state: &'static str,
    reason: String,
}

/// All versions, in the protocol's words for their states.
pub(super) async fn index(State(api): State<Api>, body: Body) -> Result<Response, Failed> {
    let request: IndexRequest = read_small_json(body).await?.unwrap_or_default();
    let versions = versions(&api, None, None)?;
    let wanted = versions.iter().filter(|version| !request.ready || version.is_ready());
    let entries = wanted.map(|version| {
        let (state, reason) = state(version);
        IndexEntry { name: version.model.clone(), version: version.label.clone(), state, reason }
    });
    Ok(json(StatusCode::OK, &entries.collect::<Vec<_>>()))
}

/// A version's state as the protocol has it, and why where it is not ready.
pub(super) fn state(version: &Version) -> (&'static str, String) {
    match version.state() {
        Loaded::Failed(reason) => ("UNAVAILABLE", reason),
        _ if version.is_ready() => ("READY", String::new()),
        Loaded::Cold | Loaded::Loading | Loaded::Ready => ("LOADING", String::new()),
    }
}

#[derive(Serialize)]
struct Config<'a> {
    name: &'a str,
    platform: &'static str,
    backend: &'static str,
    max_batch_size: i32,
    input: Vec<Tensor<'a>>,
    output: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    data_type: String,
    dims: &'a [i64],
}

/// A model's configuration; wisp does no batching of its own, so its tensors are whole.
pub(super) async fn config(State(api): State<Api>, path: ModelPath) -> Result<Response, Failed> {
    let model = api.inference().repository.model(path.model()?)?;
    let revision = model.version(path.version())?.revision().await?;
    let config = Config {
        name: &model.name,
        platform: PLATFORM,
        backend: "wisp",
        max_batch_size: 0,
        input: revision.contract.inputs.iter().map(tensor).collect(),
        output: revision.contract.outputs.iter().map(tensor).collect(),
    };
    Ok(json(StatusCode::OK, &config))
}

fn tensor(spec: &TensorSpec) -> Tensor<'_> {
    // ModelConfig has its own word for BYTES.
    let data_type = match spec.datatype.name() {
        "BYTES" => "TYPE_STRING".to_owned(),
        name => format!("TYPE_{name}"),
    };
    Tensor { name: &spec.name, data_type, dims: &spec.shape }
}
