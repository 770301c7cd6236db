//! The protocol's generate extension: a text in, plain JSON out, for models of one text.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use super::body::{self, aside};
use super::errors::Failed;
use super::infer::{Received, receive, timed};
use super::json::{Elements, check_json};
use super::metadata::ModelPath;
use super::{Api, compression};
use crate::error::Error;
use crate::infer::{InferRequest, InferResponse};
use crate::repository::Revision;
use crate::tensor::{Contract, Datatype, Parameter, Tensor, TensorSpec, push_bytes_element};

/// The extension's names for the one text that goes in and the one that comes out.
const TEXT_INPUT: &str = "text_input";
const TEXT_OUTPUT: &str = "text_output";

pub(super) async fn generate(
    State(api): State<Api>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let (response, answer) = run(&api, &path, &headers, body).await?;
    let accepted = compression::accepted(&headers);
    let answer = aside(answer.len(), || compression::answer(accepted, "application/json", answer));
    Ok(timed(&response, answer))
}

/// As a stream of events, of which there is one: a guest answers once.
pub(super) async fn generate_stream(
    State(api): State<Api>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let (response, answer) = run(&api, &path, &headers, body).await?;
    let event = [b"data: ", &answer[..], b"\n\n"].concat();
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok(timed(&response, (StatusCode::OK, headers, event).into_response()))
}

async fn run(
    api: &Api,
    path: &ModelPath,
    headers: &HeaderMap,
    body: Body,
) -> Result<(InferResponse, Vec<u8>), Failed> {
    let Received { model, picked, body: body::Collected { bytes, _room } } =
        receive(api, path, headers, body).await?;
    let revision = picked.revision.clone();
    let spec = text_input(&revision.contract).ok_or_else(|| {
        let takes: Vec<_> = revision.contract.inputs.iter().map(TensorSpec::to_string).collect();
        Error::Unsupported(format!(
            "model `{}` cannot generate: expected one BYTES input of one element, it takes {}",
            model.name,
            takes.join(", ")
        ))
    })?;
    let (request, id) = aside(bytes.len(), || read(&bytes, spec))?;
    let response = api.answer(&model, picked, request, id.as_deref().unwrap_or_default()).await?;
    let size = response.outputs.iter().map(|output| output.data.len()).sum();
    let written = aside(size, || write(&model.name, &revision, id, &response))?;
    Ok((response, written))
}

/// The one input, if it is one text.
pub(super) fn text_input(contract: &Contract) -> Option<&TensorSpec> {
    let [spec] = &contract.inputs[..] else { return None };
    let is_one = spec.shape.iter().all(|&size| size < 0 || size == 1);
    (spec.datatype == Datatype::Bytes && is_one).then_some(spec)
}

fn read(body: &[u8], spec: &TensorSpec) -> Result<(InferRequest, Option<String>), Error> {
    let invalid = Error::InvalidInput;
    let mut fields: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is no JSON object: {error}")))?;
    let id = match fields.remove("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(other) => return Err(invalid(format!("id: expected a string, got {other}"))),
    };
    let named = fields.remove(&spec.name);
    let text = match named.or_else(|| fields.remove(TEXT_INPUT)) {
        Some(Value::String(text)) => text,
        Some(other) => {
            let kind = kind(&other);
            return Err(invalid(format!("{TEXT_INPUT}: expected a string, got {kind}")));
        }
        None => return Err(invalid(format!("{TEXT_INPUT} is missing: expected a string"))),
    };
    let parameters = match fields.remove("parameters") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(parameters)) => parameters,
        Some(other) => {
            let kind = kind(&other);
            return Err(invalid(format!("parameters: expected an object, got {kind}")));
        }
    };
    let parameters = parameters.into_iter().chain(fields);
    let parameters = parameters
        .filter_map(|(name, value)| Some(parameter(&name, value)?.map(|value| (name, value))))
        .collect::<Result<Vec<_>, Error>>()?;
    let mut data = Vec::with_capacity(text.len() + 4);
    push_bytes_element(&mut data, text.as_bytes()).map_err(invalid)?;
    let shape = vec![1; spec.shape.len()];
    let input = Tensor { name: spec.name.clone(), datatype: Datatype::Bytes, shape, data };
    Ok((InferRequest { inputs: vec![input], parameters, ..InferRequest::default() }, id))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What is no string, number or boolean is ignored, but for those that mean something here:
/// clients send some of their own.
fn parameter(name: &str, value: Value) -> Option<Result<Parameter, Error>> {
    match value {
        Value::Bool(value) => Some(Ok(Parameter::Boolean(value))),
        Value::String(value) => Some(Ok(Parameter::Text(value))),
        Value::Number(value) => match value.as_i64() {
            Some(integer) => Some(Ok(Parameter::Integer(integer))),
            None => value.as_f64().map(|number| Ok(Parameter::Number(number))),
        },
        Value::Array(_) | Value::Object(_) if matches!(name, "priority" | "timeout") => {
            let kind = kind(&value);
            let reason =
                format!("parameter `{name}`: expected an integer of 0 or more, got {kind}");
            Some(Err(Error::InvalidInput(reason)))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn write(
    model: &str,
    revision: &Revision,
    id: Option<String>,
    response: &InferResponse,
) -> Result<Vec<u8>, Error> {
    let failed = |error: serde_json::Error| {
        Error::Internal(format!("the answer cannot be written: {error}"))
    };
    let texts = response.outputs.iter().filter(|output| output.datatype == Datatype::Bytes);
    let is_only_text = texts.count() == 1;
    let mut fields: Vec<(&str, Box<RawValue>)> = Vec::with_capacity(response.outputs.len() + 3);
    let mut field = |name, value: Value| {
        fields.push((name, to_raw_value(&value).map_err(failed)?));
        Ok::<_, Error>(())
    };
    id.map_or(Ok(()), |id| field("id", json!(id)))?;
    field("model_name", json!(model))?;
    field("model_version", json!(revision.version))?;
    for output in &response.outputs {
        check_json(output)?;
        let list = to_raw_value(&Elements(output)).map_err(failed)?;
        let is_one = crate::tensor::element_count(&output.shape) == Some(1);
        let value = match list.get().strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
            Some(element) if is_one => RawValue::from_string(element.to_owned()).map_err(failed)?,
            _ => list,
        };
        let is_text = is_only_text && output.datatype == Datatype::Bytes;
        fields.push((if is_text { TEXT_OUTPUT } else { &output.name }, value));
    }
    let mut body = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut body);
    serde::Serializer::collect_map(&mut serializer, fields).map_err(failed)?;
    Ok(body)
}
