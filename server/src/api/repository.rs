//! The protocol's repository: its index, loading and unloading, a model's configuration.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::Api;
use super::body::read_small_json;
use super::errors::Failed;
use super::metadata::{ModelPath, PLATFORM};
use super::reply::json;
use super::statistics::versions;
use crate::error::Error;
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

#[derive(Deserialize, Default)]
struct ControlRequest {
    #[serde(default)]
    parameters: Option<BTreeMap<String, IgnoredAny>>,
}

pub(super) async fn load(
    State(api): State<Api>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failed> {
    let request: ControlRequest = read_small_json(body).await?.unwrap_or_default();
    api.check_control_from(&headers, "load models")?;
    load_model(&api, path.model()?, request.parameters.unwrap_or_default().keys()).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn unload(
    State(api): State<Api>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failed> {
    let _: Option<ControlRequest> = read_small_json(body).await?;
    api.check_control_from(&headers, "unload models")?;
    unload_model(&api, path.model()?)?;
    Ok(StatusCode::OK)
}

/// Loads a model's versions: those with traffic at once, the others when they are asked.
///
/// # Errors
/// Clients may not; there is no such model; it cannot be loaded; or a parameter asks for
/// another configuration than its bundle's.
pub(super) async fn load_model(
    api: &Api,
    name: &str,
    mut parameters: impl Iterator<Item = &String>,
) -> Result<(), Error> {
    api.check_control("load models")?;
    if let Some(parameter) = parameters.find(|name| *name == "config" || name.starts_with("file:"))
    {
        return Err(Error::Unsupported(format!(
            "parameter `{parameter}`: a model is what its bundle says: deploy another bundle"
        )));
    }
    let model = api.inference().repository.model(name)?;
    let versions = model.versions();
    versions.iter().for_each(|(version, ..)| version.allow());
    let mut outcome = model.version(None).map(drop);
    for (version, ..) in versions.iter().filter(|(_, percent, _)| *percent > 0) {
        let loaded = version.load().await.map(drop);
        outcome = outcome.and(loaded);
    }
    outcome?;
    tracing::info!(model = name, "loaded for a client");
    Ok(())
}

/// Unloads all of a model's versions, until it is loaded again.
///
/// # Errors
/// Clients may not, or there is no such model.
pub(super) fn unload_model(api: &Api, name: &str) -> Result<(), Error> {
    api.check_control("unload models")?;
    let model = api.inference().repository.model(name)?;
    model.versions().iter().for_each(|(version, ..)| version.unload());
    tracing::info!(model = name, "unloaded for a client");
    Ok(())
}

/// A version's state as the protocol has it, and why where it is not ready.
pub(super) fn state(version: &Version) -> (&'static str, String) {
    match version.state() {
        Loaded::Failed(reason) => ("UNAVAILABLE", reason),
        Loaded::Unloaded => ("UNAVAILABLE", "unloaded by a client".to_owned()),
        _ if version.is_ready() => ("READY", String::new()),
        Loaded::Cold | Loaded::Waking | Loaded::Prepared | Loaded::Idle(_) => {
            ("LOADING", String::new())
        }
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
