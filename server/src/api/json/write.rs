//! Writes answers as the protocol's JSON.

use serde::ser::{Error as _, SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::super::infer::AnswerForm;
use super::float;
use crate::error::Error;
use crate::infer::InferResponse;
use crate::repository::Revision;
use crate::tensor::{Datatype, Parameter, Tensor, bytes_elements};

/// All of a response but its outputs.
#[derive(Serialize)]
struct ResponseHead<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: Parameters<'a>,
}

/// All of an output but its data.
#[derive(Serialize)]
struct OutputHead<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [u64],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// A response in its wire form.
pub(in super::super) struct Written<'a> {
    pub(in super::super) json: Vec<u8>,
    /// The data of its binary outputs, in their order.
    pub(in super::super) binary: Vec<&'a [u8]>,
}

/// Writes a response.
///
/// # Errors
/// An output cannot be written as JSON; the text says how to get it.
pub(in super::super) fn write<'a>(
    model: &str,
    revision: &Revision,
    id: Option<String>,
    form: &AnswerForm,
    response: &'a InferResponse,
) -> Result<Written<'a>, Error> {
    let mut json = Vec::new();
    let mut binary = Vec::new();
    let head = ResponseHead {
        model_name: model,
        model_version: &revision.version,
        id,
        parameters: Parameters(&response.parameters),
    };
    push(&mut json, &head)?;
    reopen(&mut json, "outputs");
    json.push(b'[');
    for (index, output) in response.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let is_binary = form.is_binary(&output.name);
        let head = OutputHead {
            name: &output.name,
            datatype: output.datatype.name(),
            shape: &output.shape,
            parameters: is_binary.then_some(BinarySize { binary_data_size: output.data.len() }),
        };
        push(&mut json, &head)?;
        if is_binary {
            binary.push(output.data.as_slice());
        } else {
            check_json(output)?;
            reopen(&mut json, "data");
            push_data(&mut json, output)?;
            json.push(b'}');
        }
    }
    json.extend_from_slice(b"]}");
    Ok(Written { json, binary })
}

fn push(json: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Error> {
    serde_json::to_writer(json, value)
        .map_err(|error| Error::Internal(format!("the answer cannot be written: {error}")))
}

/// Opens an object, which is never empty here, for another field.
fn reopen(json: &mut Vec<u8>, field: &str) {
    json.pop();
    json.extend_from_slice(b",\"");
    json.extend_from_slice(field.as_bytes());
    json.extend_from_slice(b"\":");
}

pub(super) fn push_data(json: &mut Vec<u8>, output: &Tensor) -> Result<(), Error> {
    if output.datatype != Datatype::Fp32 {
        return push(json, &Elements(output));
    }
    // What most answers are made of: serde would take twice as long.
    json.push(b'[');
    float::push_floats(&output.data, json);
    json.push(b']');
    Ok(())
}

/// Checks that an output can be written as JSON.
///
/// # Errors
/// It cannot; the text says how to get it.
pub(in super::super) fn check_json(output: &Tensor) -> Result<(), Error> {
    json_reason(output).map_err(|reason| {
        Error::InvalidInput(format!(
            "output `{}` {reason}, which JSON cannot carry: ask for it with `binary_data`",
            output.name
        ))
    })
}

fn json_reason(output: &Tensor) -> Result<(), String> {
    let all = |finite: bool| if finite { Ok(()) } else { Err("holds NaN or infinity".to_owned()) };
    match output.datatype {
        Datatype::Fp16 | Datatype::Bf16 => Err(format!("is {}", output.datatype)),
        Datatype::Fp32 => all(output
            .data
            .as_chunks()
            .0
            .iter()
            .all(|bytes| f32::from_le_bytes(*bytes).is_finite())),
        Datatype::Fp64 => all(output
            .data
            .as_chunks()
            .0
            .iter()
            .all(|bytes| f64::from_le_bytes(*bytes).is_finite())),
        Datatype::Bytes => bytes_elements(&output.data).try_for_each(|element| {
            str::from_utf8(element?)
                .map(|_| ())
                .map_err(|_| "holds bytes that are not UTF-8".to_owned())
        }),
        _ => Ok(()),
    }
}

/// A tensor's elements as a flat list.
pub(in super::super) struct Elements<'a>(pub(in super::super) &'a Tensor);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Tensor { datatype, data, .. } = self.0;
        macro_rules! numbers {
            ($type:ty) => {
                serializer.collect_seq(
                    data.as_chunks().0.iter().map(|bytes| <$type>::from_le_bytes(*bytes)),
                )
            };
        }
        match datatype {
            Datatype::Bool => serializer.collect_seq(data.iter().map(|&byte| byte != 0)),
            Datatype::Uint8 => serializer.collect_seq(data),
            Datatype::Uint16 => numbers!(u16),
            Datatype::Uint32 => numbers!(u32),
            Datatype::Uint64 => numbers!(u64),
            Datatype::Int8 => numbers!(i8),
            Datatype::Int16 => numbers!(i16),
            Datatype::Int32 => numbers!(i32),
            Datatype::Int64 => numbers!(i64),
            Datatype::Fp32 => numbers!(f32),
            Datatype::Fp64 => numbers!(f64),
            Datatype::Fp16 | Datatype::Bf16 => {
                Err(S::Error::custom(format!("{datatype} has no JSON form")))
            }
            Datatype::Bytes => {
                let mut list = serializer.serialize_seq(None)?;
                for element in bytes_elements(data) {
                    let element = element.map_err(S::Error::custom)?;
                    list.serialize_element(str::from_utf8(element).map_err(S::Error::custom)?)?;
                }
                list.end()
            }
        }
    }
}

struct Parameters<'a>(&'a [(String, Parameter)]);

impl Parameters<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Parameters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            match value {
                Parameter::Boolean(value) => map.serialize_entry(name, value)?,
                Parameter::Integer(value) => map.serialize_entry(name, value)?,
                Parameter::Number(value) => map.serialize_entry(name, value)?,
                Parameter::Text(value) => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}
