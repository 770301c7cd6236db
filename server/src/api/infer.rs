//! `POST …/infer`: which of the three wire forms came, and the answer in the form asked for.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;

use super::body::{Collected, aside};
use super::callers::Caller;
use super::classification::classify;
use super::compression::Coding;
use super::errors::Failed;
use super::json::Written;
use super::metadata::ModelPath;
use super::{Api, ApiOptions, binary, body, compression, json};
use crate::error::Error;
use crate::infer::{InferRequest, InferResponse, Inference};
use crate::repository::{Model, Picked, Revision};
use crate::tensor::{Contract, Datatype};
use crate::usage::Used;

/// The length of the JSON in front of binary tensors (the binary tensor data extension).
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const USAGE: HeaderName = HeaderName::from_static("wisp-usage");

/// A request in no wire form any more, and what its answer must look like.
pub(super) struct Parsed {
    pub(super) request: InferRequest,
    pub(super) id: Option<String>,
    pub(super) form: AnswerForm,
}

/// How the client wants its outputs.
#[derive(Debug, Default)]
pub(super) struct AnswerForm {
    /// Where an output says nothing of its own.
    pub(super) binary_by_default: bool,
    /// What outputs say for themselves.
    pub(super) own: Vec<OutputForm>,
}

#[derive(Debug)]
pub(super) struct OutputForm {
    pub(super) name: String,
    pub(super) binary: Option<bool>,
    /// As classes instead of values: that many, 0 for values.
    pub(super) classes: u64,
}

impl AnswerForm {
    fn own(&self, output: &str) -> Option<&OutputForm> {
        self.own.iter().find(|own| own.name == output)
    }

    pub(super) fn is_binary(&self, output: &str) -> bool {
        let own = self.own(output).and_then(|own| own.binary);
        own.unwrap_or(self.binary_by_default)
    }

    pub(super) fn classes(&self, output: &str) -> u64 {
        self.own(output).map_or(0, |own| own.classes)
    }
}

pub(super) async fn infer(
    State(api): State<Api>,
    path: ModelPath,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let Received { model, picked, body: Collected { bytes, _room } } =
        receive(&api, &path, &headers, body).await?;
    let revision = picked.revision.clone();
    let size = bytes.len();
    let Parsed { mut request, id, form } = aside(size, || parse(&headers, bytes, &revision))?;
    request.key = caller.key();
    let mut response =
        api.answer(&model, picked, request, id.as_deref().unwrap_or_default()).await?;
    let accepted = compression::accepted(&headers);
    let size: usize = response.outputs.iter().map(|output| output.data.len()).sum();
    // To compress takes several times as long as to write.
    Ok(aside(if accepted.is_some() { size * 8 } else { size }, || {
        classify(&mut response, &form, &revision)?;
        answer(&model.name, &revision, id, &form, &response, accepted)
    })?)
}

/// A request's model, who answers it, and its whole body.
pub(super) struct Received<'a> {
    pub(super) model: Arc<Model>,
    pub(super) picked: Picked,
    pub(super) body: Collected<'a>,
}

/// Finds the model before it reads the body.
///
/// # Errors
/// There is no such model or version, it is not ready, or the body does not arrive.
pub(super) async fn receive<'a>(
    api: &'a Api,
    path: &ModelPath,
    headers: &HeaderMap,
    body: Body,
) -> Result<Received<'a>, Error> {
    let known = async {
        let model = api.inference().repository.model(path.model()?)?;
        let picked = model.pick(path.version()).await?;
        picked.revision.gate.check(&model.name)?;
        Ok((model, picked))
    };
    let (model, picked) = match known.await {
        Ok(known) => known,
        Err(error) => {
            body::discard(headers, body).await;
            return Err(error);
        }
    };
    let options = ApiOptions { body_limit: picked.revision.body_limit, ..api.options() };
    let body = body::read(headers, body, options, api.bodies()).await?;
    Ok(Received { model, picked, body })
}

/// Answers one body without HTTP: JSON, or the model's one input as it is.
///
/// # Errors
/// As a request would get.
pub async fn infer_once(
    inference: &Inference,
    model: &Model,
    body: Vec<u8>,
    is_json: bool,
) -> Result<Vec<u8>, Error> {
    let Picked { revision, shadow: _ } = model.pick(None).await?;
    let Parsed { request, id, form } = match is_json {
        true => json::parse(&body, &[])?,
        false => binary::parse_raw(body, &revision.contract, false)?,
    };
    let mut response = inference.infer(&model.name, &revision, request).await?;
    classify(&mut response, &form, &revision)?;
    Ok(json::write(&model.name, &revision, id, &form, &response)?.json)
}

fn parse(headers: &HeaderMap, body: Vec<u8>, revision: &Revision) -> Result<Parsed, Error> {
    let contract = &revision.contract;
    let mut lengths = headers.get_all(&JSON_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return Err(Error::InvalidInput(format!("header {JSON_LENGTH} came twice")));
        }
        let length = binary::json_length(length.as_bytes(), body.len())?;
        return match length {
            0 => binary::parse_raw(body, contract, true),
            _ => binary::parse(&body, length),
        };
    }
    let media_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    match media_type {
        // Some clients call their JSON so, having no binary tensors behind it.
        Some(b"application/octet-stream")
            if body.trim_ascii_start().starts_with(b"{")
                && let Some(parsed) = parse_unnamed_json(&body, contract) =>
        {
            parsed
        }
        Some(media_type) if !may_be_json(media_type) => binary::parse_raw(body, contract, false)
            .map_err(|error| match error {
                Error::InvalidInput(text) => {
                    let media_type = String::from_utf8_lossy(media_type);
                    Error::InvalidInput(format!(
                        "a body of type {media_type} is taken as the model's one input: {text}"
                    ))
                }
                other => other,
            }),
        _ => json::parse(&body, &[]),
    }
}

/// A request in JSON that does not say so; `None` where the body is rather a tensor's bytes.
fn parse_unnamed_json(body: &[u8], contract: &Contract) -> Option<Result<Parsed, Error>> {
    let parsed = json::parse(body, &[]);
    let opens_so = |field: &str| {
        let first = body.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        first.is_some_and(|first| first.starts_with(format!("\"{field}\"").as_bytes()))
    };
    // A text may look like a request; numbers hardly do.
    let has_text = contract.inputs.iter().any(|spec| spec.datatype == Datatype::Bytes);
    let is_meant = !has_text && ["id", "inputs", "outputs", "parameters"].into_iter().any(opens_so);
    (parsed.is_ok() || is_meant).then_some(parsed)
}

/// Clients of the protocol often send no content type, and curl sends a form's: both mean JSON.
fn may_be_json(media_type: &[u8]) -> bool {
    let essence = media_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
        || essence.to_ascii_lowercase().ends_with(b"+json")
}

fn answer(
    model: &str,
    revision: &Revision,
    id: Option<String>,
    form: &AnswerForm,
    response: &InferResponse,
    accepted: Option<Coding>,
) -> Result<Response, Error> {
    let Written { json, binary } = json::write(model, revision, id, form, response)?;
    let length = HeaderValue::from(json.len());
    let mut body = json;
    body.reserve_exact(binary.iter().map(|tensor| tensor.len()).sum());
    binary.iter().for_each(|tensor| body.extend_from_slice(tensor));
    let media_type =
        if binary.is_empty() { "application/json" } else { "application/octet-stream" };
    let mut answer = compression::answer(accepted, media_type, body);
    if !binary.is_empty() {
        answer.headers_mut().insert(JSON_LENGTH, length);
    }
    Ok(accounted(response, answer))
}

/// Says in the answer's head where the request's time went, and what it used.
pub(super) fn accounted(response: &InferResponse, mut answer: Response) -> Response {
    answer.headers_mut().insert(SERVER_TIMING, server_timing(response));
    answer.headers_mut().insert(USAGE, usage(&response.used));
    answer
}

/// A dictionary of <https://www.rfc-editor.org/rfc/rfc8941#name-dictionaries>.
fn usage(used: &Used) -> HeaderValue {
    let Used { guest_cpu, compute_cpu, peak_memory_bytes, bytes_in, bytes_out } = used;
    let (guest_us, compute_us) = (guest_cpu.as_micros(), compute_cpu.as_micros());
    let text = format!(
        "guest-cpu-us={guest_us}, compute-cpu-us={compute_us}, peak-memory-bytes={peak_memory_bytes}, \
         bytes-in={bytes_in}, bytes-out={bytes_out}"
    );
    HeaderValue::try_from(text).expect("names and numbers are ASCII")
}

/// Milliseconds, as <https://www.w3.org/TR/server-timing/> has them.
fn server_timing(response: &InferResponse) -> HeaderValue {
    let timings = response.timings;
    let mut text = String::with_capacity(96);
    let phases = [
        ("queue", response.queue),
        ("sandbox", timings.start),
        ("guest", timings.guest),
        ("compute", timings.compute),
    ];
    for (name, duration) in phases {
        let separator = if text.is_empty() { "" } else { ", " };
        // Integers: a float's formatting would cost as much as the rest of the answer.
        let (ms, us) = (duration.as_millis(), duration.subsec_micros() % 1000);
        write!(text, "{separator}{name};dur={ms}.{us:03}")
            .expect("writing to a String cannot fail");
    }
    HeaderValue::try_from(text).expect("names and numbers are ASCII")
}
