//! The protocol's generate extension: a text in, plain JSON out, for models of one text.

use std::fmt;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::body::{self, aside};
use super::callers::Caller;
use super::errors::Failed;
use super::infer::{Received, accounted, receive};
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
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let (response, answer) = run(&api, &path, &caller, &headers, body).await?;
    let accepted = compression::accepted(&headers);
    let answer = aside(answer.len(), || compression::answer(accepted, "application/json", answer));
    Ok(accounted(&response, answer))
}

/// As a stream of events, of which there is one: a guest answers once.
pub(super) async fn generate_stream(
    State(api): State<Api>,
    path: ModelPath,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let (response, answer) = run(&api, &path, &caller, &headers, body).await?;
    let event = [b"data: ", &answer[..], b"\n\n"].concat();
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok(accounted(&response, (StatusCode::OK, headers, event).into_response()))
}

async fn run(
    api: &Api,
    path: &ModelPath,
    caller: &Caller,
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
    let (mut request, id) = aside(bytes.len(), || read(&bytes, spec))?;
    request.key = caller.key();
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

/// Fields as they are kept: what is ignored is read over, so that it takes no memory.
#[derive(Default)]
struct Fields {
    id: Option<String>,
    /// By the extension's name or the input's own.
    texts: Vec<String>,
    parameters: Vec<(String, Parameter)>,
}

/// Each is held as a name and a value, twenty times its text and more.
const MOST_PARAMETERS: usize = 1000;

fn read(body: &[u8], spec: &TensorSpec) -> Result<(InferRequest, Option<String>), Error> {
    let invalid = Error::InvalidInput;
    let mut json = serde_json::Deserializer::from_slice(body);
    let fields = Object { input: &spec.name, are_parameters: false };
    let fields = fields.deserialize(&mut json).and_then(|fields| json.end().map(|()| fields));
    let Fields { id, texts, parameters } =
        fields.map_err(|error| invalid(format!("the body is no request to generate: {error}")))?;
    let [text] = &texts[..] else {
        return Err(invalid(match texts.len() {
            0 => format!("{TEXT_INPUT} is missing: expected a string"),
            _ => format!("{TEXT_INPUT} came twice, once as `{}`", spec.name),
        }));
    };
    let mut data = Vec::with_capacity(text.len() + 4);
    push_bytes_element(&mut data, text.as_bytes()).map_err(invalid)?;
    let shape = vec![1; spec.shape.len()];
    let input = Tensor { name: spec.name.clone(), datatype: Datatype::Bytes, shape, data };
    Ok((InferRequest { inputs: vec![input], parameters, ..InferRequest::default() }, id))
}

/// The body, or the `parameters` in it.
#[derive(Clone, Copy)]
struct Object<'a> {
    input: &'a str,
    are_parameters: bool,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Fields;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    /// `parameters` may be null.
    fn visit_unit<E: de::Error>(self) -> Result<Fields, E> {
        match self.are_parameters {
            true => Ok(Fields::default()),
            false => Err(E::invalid_type(de::Unexpected::Unit, &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            let is_text = name == TEXT_INPUT || name == self.input;
            match name.as_str() {
                _ if self.are_parameters => fields.keep(name, map.next_value()?)?,
                _ if is_text => match map.next_value()? {
                    Scalar::Kept(Parameter::Text(text)) => fields.texts.push(text),
                    other => {
                        let reason = format!("{TEXT_INPUT}: expected a string, got {other}");
                        return Err(de::Error::custom(reason));
                    }
                },
                "id" => fields.id = map.next_value::<Scalar>()?.id().map_err(de::Error::custom)?,
                "parameters" => {
                    let more = map.next_value_seed(Self { are_parameters: true, ..self })?;
                    fields.parameters.extend(more.parameters);
                }
                _ => fields.keep(name, map.next_value()?)?,
            }
        }
        Ok(fields)
    }
}

impl Fields {
    /// What is no string, number or boolean is ignored, but for those that mean something here:
    /// clients send some of their own.
    fn keep<E: de::Error>(&mut self, name: String, value: Scalar) -> Result<(), E> {
        match value {
            Scalar::Kept(_) if self.parameters.len() == MOST_PARAMETERS => {
                Err(E::custom(format!("more than {MOST_PARAMETERS} parameters")))
            }
            Scalar::Kept(value) => {
                self.parameters.push((name, value));
                Ok(())
            }
            Scalar::List | Scalar::Object if matches!(&*name, "priority" | "timeout") => {
                Err(E::custom(format!("parameter `{name}`: expected an integer, got {value}")))
            }
            Scalar::Null | Scalar::List | Scalar::Object => Ok(()),
        }
    }
}

enum Scalar {
    Kept(Parameter),
    Null,
    List,
    Object,
}

impl Scalar {
    fn id(self) -> Result<Option<String>, String> {
        match self {
            Self::Null => Ok(None),
            Self::Kept(Parameter::Text(id)) => Ok(Some(id)),
            Self::Kept(number @ (Parameter::Integer(_) | Parameter::Number(_))) => {
                Ok(Some(number.to_string()))
            }
            other => Err(format!("id: expected a string, got {other}")),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kept(Parameter::Boolean(_)) => "a boolean",
            Self::Kept(Parameter::Integer(_) | Parameter::Number(_)) => "a number",
            Self::Kept(Parameter::Text(_)) => "a string",
            Self::Null => "null",
            Self::List => "a list",
            Self::Object => "an object",
        })
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Kept(Parameter::Boolean(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Kept(Parameter::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        let integer = i64::try_from(value).map(Parameter::Integer);
        Ok(Scalar::Kept(integer.unwrap_or(Parameter::Number(value as f64))))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Kept(Parameter::Number(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Kept(Parameter::Text(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Object)
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
