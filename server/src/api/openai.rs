//! OpenAI's embeddings, for models whose manifest says `task = "text-embedding"`, in that API's
//! own forms of answers and errors: <https://platform.openai.com/docs/api-reference/embeddings>.

use std::fmt;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::{self, aside};
use super::callers::Caller;
use super::errors;
use super::infer::accounted;
use super::metadata::ModelPath;
use super::reply::json;
use super::{Api, compression};
use crate::bundle::Task;
use crate::error::Error;
use crate::infer::{InferRequest, InferResponse};
use crate::repository::Model;
use crate::tensor::{Datatype, Parameter, Tensor, push_bytes_element};

/// Texts in one request.
const MAX_INPUTS: usize = 2048;

/// An error on its way out, in this API's form.
pub(super) struct Failed(pub(super) Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        errors::respond(&self.0, |status, text| {
            let kind = match status {
                StatusCode::UNAUTHORIZED => "authentication_error",
                status if status.is_server_error() => "server_error",
                _ => "invalid_request_error",
            };
            let code = match &self.0 {
                Error::UnknownModel(_) => Some("model_not_found"),
                Error::InvalidInput(_) => None,
                other => Some(other.kind()),
            };
            json!({"error": {"message": text, "type": kind, "param": field(text), "code": code}})
        })
    }
}

/// The field of the request that an error's text is about, where it opens with one.
fn field(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix(UNREADABLE).unwrap_or(text).split_once(':')?;
    ["model", "input", "encoding_format", "dimensions"].contains(&name).then_some(name)
}

/// Before what serde says of a body.
const UNREADABLE: &str = "the body is no embedding request: ";

#[derive(Deserialize)]
struct EmbeddingRequest {
    model: String,
    input: Inputs,
    #[serde(default)]
    encoding_format: Option<String>,
    #[serde(default)]
    dimensions: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Encoding {
    Float,
    Base64,
}

impl Encoding {
    fn parse(name: Option<&str>) -> Result<Self, Error> {
        match name {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64),
            Some(other) => Err(Error::InvalidInput(format!(
                "encoding_format: expected float or base64, got `{other}`"
            ))),
        }
    }
}

/// Texts, or texts as lists of tokens: elements of a BYTES tensor.
#[derive(Debug, PartialEq)]
struct Inputs {
    data: Vec<u8>,
    count: usize,
    are_tokens: bool,
}

#[derive(Serialize)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: i64,
    total_tokens: i64,
}

pub(super) async fn embeddings(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let body::Collected { bytes, _room } =
        body::read(&headers, body, api.options(), api.bodies()).await?;
    // serde would take a list for an object's fields.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Failed(Error::InvalidInput(format!("{UNREADABLE}it is a list"))));
    }
    let read = || serde_json::from_slice(&bytes);
    let request: EmbeddingRequest = aside(bytes.len(), read)
        .map_err(|error| Error::InvalidInput(format!("{UNREADABLE}{error}")))?;
    let encoding = Encoding::parse(request.encoding_format.as_deref())?;
    let model = api.inference().repository.model(&request.model)?;
    let picked = model.pick(None).await?;
    // The model is known by its body only.
    let limit = picked.revision.body_limit;
    if bytes.len() > limit {
        return Err(Failed(Error::TooLarge { limit }));
    }
    let length = match picked.revision.task {
        Some(Task::TextEmbedding) => length(&picked.revision.contract),
        None => return Err(no_embedding(&model).into()),
    };
    if let Some(asked) = request.dimensions.filter(|&asked| Some(asked) != length) {
        return Err(Failed(Error::InvalidInput(format!(
            "dimensions: model `{}` gives {} of them, got {asked}",
            model.name,
            length.unwrap_or(0)
        ))));
    }
    let Inputs { data, count, are_tokens } = request.input;
    let shape = vec![count as u64];
    let text = Tensor { name: "text".to_owned(), datatype: Datatype::Bytes, shape, data };
    let request = InferRequest {
        inputs: vec![text],
        outputs: vec!["embedding".to_owned(), "tokens".to_owned()],
        parameters: vec![("token_ids".to_owned(), Parameter::Boolean(are_tokens))],
        timeout: None,
        key: caller.key(),
    };
    let response = api.answer(&model, picked, request, "").await?;
    let size = response.outputs.iter().map(|output| output.data.len()).sum();
    let accepted = compression::accepted(&headers);
    let answer = aside(size, || {
        let answer = write(&model.name, &response, count, encoding)?;
        Ok::<_, Error>(compression::answer(accepted, "application/json", answer))
    });
    Ok(accounted(&response, answer?))
}

fn no_embedding(model: &Model) -> Error {
    Error::InvalidInput(format!("model `{}` is not for text embedding", model.name))
}

/// Of a vector.
fn length(contract: &crate::tensor::Contract) -> Option<u64> {
    let embedding = contract.outputs.iter().find(|spec| spec.name == "embedding")?;
    u64::try_from(*embedding.shape.get(1)?).ok()
}

fn write(
    model: &str,
    response: &InferResponse,
    count: usize,
    encoding: Encoding,
) -> Result<Vec<u8>, Error> {
    let failed =
        |reason: &str| Error::GuestFailed { model: model.to_owned(), reason: reason.to_owned() };
    let [embedding, tokens] = &response.outputs[..] else {
        return Err(failed("it gave other outputs than were asked for"));
    };
    let rows = [embedding, tokens].map(|output| output.shape.first().copied());
    if rows != [Some(count as u64); 2] {
        return Err(failed("it gave another number of vectors than there were texts"));
    }
    let length = embedding.data.len() / count.max(1);
    let rows = embedding.data.chunks(length.max(1)).enumerate().map(|(index, bytes)| {
        let embedding = match encoding {
            Encoding::Base64 => Vector::Base64(STANDARD.encode(bytes)),
            Encoding::Float => {
                let floats = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                let floats: Vec<f32> = floats.collect();
                if floats.iter().any(|value| !value.is_finite()) {
                    return Err(failed("its vector holds NaN or infinity"));
                }
                Vector::Floats(floats)
            }
        };
        Ok(Embedding { object: "embedding", index, embedding })
    });
    let used: i64 = tokens
        .data
        .as_chunks()
        .0
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes))
        .fold(0, i64::saturating_add);
    let list = EmbeddingList {
        object: "list",
        data: rows.collect::<Result<_, Error>>()?,
        model,
        usage: Usage { prompt_tokens: used, total_tokens: used },
    };
    serde_json::to_vec(&list)
        .map_err(|error| Error::Internal(format!("the answer cannot be written: {error}")))
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelEntry<'a>>,
}

#[derive(Serialize)]
struct ModelEntry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

fn entry<'a>(api: &Api, model: &'a Model) -> Option<ModelEntry<'a>> {
    let task = model.main_version().and_then(|version| version.task());
    let created = api.started();
    let entry = ModelEntry { id: &model.name, object: "model", created, owned_by: "wisp" };
    task.map(|Task::TextEmbedding| entry)
}

pub(super) async fn models(State(api): State<Api>) -> Response {
    let models = api.inference().repository.models();
    let data = models.iter().filter_map(|model| entry(&api, model)).collect();
    json(StatusCode::OK, &ModelList { object: "list", data })
}

pub(super) async fn model(
    State(api): State<Api>,
    path: Result<ModelPath, errors::Failed>,
) -> Result<Response, Failed> {
    let path = path.map_err(|errors::Failed(error)| error)?;
    let name = path.model()?;
    let model = api.inference().repository.model(name)?;
    let entry = entry(&api, &model).ok_or_else(|| Error::UnknownModel(name.to_owned()))?;
    Ok(json(StatusCode::OK, &entry))
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let inputs = deserializer.deserialize_any(InputsVisitor)?;
        match inputs.count {
            0 => Err(de::Error::custom("input: expected one text or more, got none")),
            _ => Ok(inputs),
        }
    }
}

struct InputsVisitor;

/// A list's element.
enum Entry {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl Inputs {
    fn push<E: de::Error>(&mut self, text: &[u8]) -> Result<(), E> {
        if text.is_empty() {
            let number = self.count;
            return Err(E::custom(format!("input: text {number} is empty")));
        }
        if self.count == MAX_INPUTS {
            return Err(E::custom(format!("input: expected at most {MAX_INPUTS} texts")));
        }
        self.count += 1;
        push_bytes_element(&mut self.data, text).map_err(E::custom)
    }
}

fn bytes_of(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, a list of strings, a list of tokens, or a list of those")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Inputs, E> {
        let mut inputs = Inputs { data: Vec::new(), count: 0, are_tokens: false };
        inputs.push(text.as_bytes())?;
        Ok(inputs)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
        let mixed = || de::Error::custom("input: expected texts only, or tokens only");
        let mut inputs = Inputs { data: Vec::new(), count: 0, are_tokens: false };
        let mut tokens = Vec::new();
        while let Some(entry) = list.next_element()? {
            let is_first = inputs.count == 0 && tokens.is_empty();
            match entry {
                Entry::Text(text) if is_first || (!inputs.are_tokens && tokens.is_empty()) => {
                    inputs.push(text.as_bytes())?;
                }
                Entry::Token(token) if inputs.count == 0 => tokens.push(token),
                Entry::Tokens(list) if is_first || (inputs.are_tokens && tokens.is_empty()) => {
                    inputs.are_tokens = true;
                    inputs.push(&bytes_of(&list))?;
                }
                _ => return Err(mixed()),
            }
        }
        if !tokens.is_empty() {
            inputs.are_tokens = true;
            inputs.push(&bytes_of(&tokens))?;
        }
        Ok(inputs)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;

        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, a token or a list of tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, token: u64) -> Result<Entry, E> {
                let token = u32::try_from(token);
                token.map(Entry::Token).map_err(|_| E::custom("input: a token is below 2^32"))
            }

            // A whole number, however it is written.
            fn visit_f64<E: de::Error>(self, token: f64) -> Result<Entry, E> {
                let whole = Parameter::Number(token).as_count();
                self.visit_u64(whole.ok_or_else(|| E::custom("input: a token is a whole number"))?)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = list.next_element()? {
                    match entry {
                        Entry::Token(token) => tokens.push(token),
                        _ => return Err(de::Error::custom("input: expected tokens in a list")),
                    }
                }
                Ok(Entry::Tokens(tokens))
            }
        }

        deserializer.deserialize_any(EntryVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(usize, bool, Vec<u8>), String> {
        let inputs: Result<Inputs, _> = serde_json::from_str(text);
        let inputs = inputs.map_err(|error| error.to_string())?;
        Ok((inputs.count, inputs.are_tokens, inputs.data))
    }

    #[test]
    fn texts_and_tokens_are_told_apart() {
        assert_eq!(read(r#""é""#), Ok((1, false, b"\x02\0\0\0\xc3\xa9".to_vec())));
        assert_eq!(read(r#"["a","b"]"#).map(|read| read.0), Ok(2));
        assert_eq!(read("[7, 1]"), Ok((1, true, b"\x08\0\0\0\x07\0\0\0\x01\0\0\0".to_vec())));
        assert_eq!(read("[[7],[1,2]]").map(|read| (read.0, read.1)), Ok((2, true)));
        let many = |count| format!("[{}]", vec!["\"a\""; count].join(","));
        assert_eq!(read(&many(MAX_INPUTS)).map(|read| read.0), Ok(MAX_INPUTS));
        for odd in [
            "[]",
            "\"\"",
            "[\"\"]",
            "[[]]",
            "[[7],[]]",
            "1",
            "null",
            "{}",
            "[1,\"a\"]",
            "[\"a\",1]",
            "[[1],2]",
            "[1,[2]]",
            "[[1],\"a\"]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[[[1]]]",
            "[null]",
            &many(MAX_INPUTS + 1),
        ] {
            assert!(read(odd).is_err(), "{odd}");
        }
    }
}
