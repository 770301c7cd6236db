//! Reads the protocol's JSON into tensors.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_json::value::RawValue;

use super::classification;
use super::infer::{AnswerForm, OutputForm, Parsed};
use crate::error::Error;
use crate::infer::InferRequest;
use crate::tensor::{Datatype, Parameter, Tensor, push_bytes_element};

/// Unknown fields and unknown parameters are ignored: clients send some of their own.
#[derive(Deserialize)]
struct RequestBody<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    inputs: Vec<InputBody<'a>>,
    #[serde(borrow, default, deserialize_with = "null_is_default")]
    outputs: Vec<OutputBody<'a>>,
}

#[derive(Deserialize)]
struct InputBody<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    /// Not integers yet, so that a wrong one can be named.
    shape: Vec<Number>,
    #[serde(default)]
    parameters: Parameters,
    /// Read once the datatype is known, wherever that stands.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputBody<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
}

/// Reads a request whose binary inputs, if any, lie in `tensors`, one after the other.
///
/// # Errors
/// Which field is wrong, what was expected and what came.
pub(super) fn parse(json: &[u8], mut tensors: &[u8]) -> Result<Parsed, Error> {
    let invalid = |text: String| Error::InvalidInput(text);
    // serde would take a list for an object's fields.
    if json.trim_ascii_start().first().is_some_and(|&first| first != b'{') {
        return Err(invalid("the body is not an inference request: expected a JSON object".into()));
    }
    let body: RequestBody = serde_json::from_slice(json)
        .map_err(|error| invalid(format!("the body is not an inference request: {error}")))?;
    let mut inputs = Vec::with_capacity(body.inputs.len());
    for input in body.inputs {
        let name = input.name.clone();
        inputs.push(
            read_input(input, &mut tensors)
                .map_err(|reason| invalid(format!("input `{name}`: {reason}")))?,
        );
    }
    if !tensors.is_empty() {
        return Err(invalid(format!("{} bytes follow the last binary input", tensors.len())));
    }
    let mut outputs = Vec::with_capacity(body.outputs.len());
    let mut form = AnswerForm::default();
    for OutputBody { name, parameters } in body.outputs {
        let name = name.into_owned();
        let own = output_form(&name, &parameters);
        form.own.push(own.map_err(|reason| invalid(format!("output `{name}`: {reason}")))?);
        outputs.push(name);
    }
    form.binary_by_default =
        flag(&body.parameters, "binary_data_output").map_err(invalid)?.unwrap_or(false);
    let request = InferRequest { inputs, outputs, parameters: body.parameters.0, timeout: None };
    Ok(Parsed { request, id: body.id.map(Cow::into_owned), form })
}

/// Reads the outputs of an answer, whose tensors are all JSON.
///
/// # Errors
/// Which field is wrong, what was expected and what came.
pub(super) fn parse_answer(json: &[u8]) -> Result<Vec<Tensor>, String> {
    #[derive(Deserialize)]
    struct AnswerBody<'a> {
        #[serde(borrow)]
        outputs: Vec<InputBody<'a>>,
    }
    let body: AnswerBody = serde_json::from_slice(json)
        .map_err(|error| format!("not an inference answer: {error}"))?;
    let outputs = body.outputs.into_iter().map(|output| {
        let name = output.name.clone();
        let tensor = read_input(output, &mut &[][..]);
        let tensor = tensor.and_then(|tensor| tensor.check_length().map(|()| tensor));
        tensor.map_err(|reason| format!("output `{name}`: {reason}"))
    });
    outputs.collect()
}

fn read_input(input: InputBody<'_>, tensors: &mut &[u8]) -> Result<Tensor, String> {
    let datatype = Datatype::parse(&input.datatype)
        .ok_or_else(|| format!("unknown datatype `{}`", input.datatype))?;
    let shape = read_shape(&input.shape)?;
    let data = match (input.parameters.get("binary_data_size"), input.data) {
        (Some(_), Some(_)) => return Err("it has both `data` and `binary_data_size`".to_owned()),
        (None, None) => {
            return Err("it has neither `data` nor `parameters.binary_data_size`".to_owned());
        }
        (Some(size), None) => {
            let length = match size {
                Parameter::Integer(size) => usize::try_from(*size).ok(),
                _ => None,
            };
            let split = length.and_then(|length| tensors.split_at_checked(length));
            let (data, rest) = split.ok_or_else(|| {
                format!(
                    "`binary_data_size`: expected at most the {} bytes left in the body, got {size}",
                    tensors.len()
                )
            })?;
            *tensors = rest;
            data.to_vec()
        }
        (None, Some(json)) => read_data(datatype, &shape, json)?,
    };
    Ok(Tensor { name: input.name.into_owned(), datatype, shape, data })
}

fn read_shape(shape: &[Number]) -> Result<Vec<u64>, String> {
    let sizes = shape.iter().enumerate().map(|(dimension, size)| {
        let whole = || Parameter::Number(size.as_f64()?).as_count();
        size.as_u64().or_else(whole).ok_or_else(|| {
            format!("shape[{dimension}]: expected an integer of 0 or more, got {size}")
        })
    });
    sizes.collect()
}

fn read_data(datatype: Datatype, shape: &[u64], json: &RawValue) -> Result<Vec<u8>, String> {
    if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) {
        return Err(format!("{datatype} cannot be sent as JSON: send it as binary tensor data"));
    }
    // As much as the shape asks for, but never more than the text can hold: an element takes a
    // digit and a comma at least.
    let elements =
        crate::tensor::element_count(shape).unwrap_or(0).min(json.get().len() as u64 / 2 + 1);
    let mut data = Vec::with_capacity(elements as usize * datatype.size().unwrap_or(8));
    let mut json = serde_json::Deserializer::from_str(json.get());
    let elements = Elements { datatype, data: &mut data };
    elements.deserialize(&mut json).map_err(|error| format!("`data`: {error}"))?;
    Ok(data)
}

/// Appends the elements of nested or flat lists, row-major.
struct Elements<'a> {
    datatype: Datatype,
    data: &'a mut Vec<u8>,
}

impl Elements<'_> {
    fn push_integer<E: de::Error>(&mut self, value: i128) -> Result<(), E> {
        macro_rules! push {
            ($type:ty) => {
                <$type>::try_from(value)
                    .map(|value| self.data.extend_from_slice(&value.to_le_bytes()))
                    .is_ok()
            };
        }
        let fits = match self.datatype {
            Datatype::Uint8 => push!(u8),
            Datatype::Uint16 => push!(u16),
            Datatype::Uint32 => push!(u32),
            Datatype::Uint64 => push!(u64),
            Datatype::Int8 => push!(i8),
            Datatype::Int16 => push!(i16),
            Datatype::Int32 => push!(i32),
            Datatype::Int64 => push!(i64),
            Datatype::Fp32 | Datatype::Fp64 => return self.push_float(value as f64),
            Datatype::Bool | Datatype::Bytes | Datatype::Fp16 | Datatype::Bf16 => false,
        };
        match fits {
            true => Ok(()),
            false => Err(E::custom(format!("expected {}, got {value}", self.datatype))),
        }
    }

    fn push_float<E: de::Error>(&mut self, value: f64) -> Result<(), E> {
        match self.datatype {
            Datatype::Fp32 if (value as f32).is_finite() => {
                self.data.extend_from_slice(&(value as f32).to_le_bytes())
            }
            Datatype::Fp64 => self.data.extend_from_slice(&value.to_le_bytes()),
            _ => return Err(E::custom(format!("expected {}, got {value:?}", self.datatype))),
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} or a list of them", self.datatype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { datatype, data } = self;
        while list.next_element_seed(Elements { datatype, data: &mut *data })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        match self.datatype {
            Datatype::Bool => self.data.push(u8::from(value)),
            _ => return Err(E::custom(format!("expected {}, got {value}", self.datatype))),
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(mut self, value: i64) -> Result<(), E> {
        self.push_integer(value.into())
    }

    fn visit_u64<E: de::Error>(mut self, value: u64) -> Result<(), E> {
        self.push_integer(value.into())
    }

    fn visit_f64<E: de::Error>(mut self, value: f64) -> Result<(), E> {
        self.push_float(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        match self.datatype {
            Datatype::Bytes => push_bytes_element(self.data, value.as_bytes()).map_err(E::custom),
            _ => Err(E::custom(format!("expected {}, got a string", self.datatype))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(de::Error::custom(format!("expected {}, got an object", self.datatype)))
    }
}

fn output_form(name: &str, parameters: &Parameters) -> Result<OutputForm, String> {
    let binary = flag(parameters, "binary_data")?;
    let classes = parameters.get("classification").map_or(Ok(0), classification::count)?;
    Ok(OutputForm { name: name.to_owned(), binary, classes })
}

fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, String> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Boolean(value)) => Ok(Some(*value)),
        Some(other) => Err(format!("parameter `{name}`: expected true or false, got {other}")),
    }
}

/// Parameters are strings, numbers and booleans; anything else is skipped as it is read, so
/// that it takes no memory.
#[derive(Default)]
struct Parameters(Vec<(String, Parameter)>);

impl Parameters {
    fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParametersVisitor)
    }
}

struct ParametersVisitor;

impl<'de> Visitor<'de> for ParametersVisitor {
    type Value = Parameters;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of parameters")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Parameters, E> {
        Ok(Parameters::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let mut parameters = Parameters::default();
        while let Some(name) = map.next_key()? {
            if let Some(value) = map.next_value_seed(Scalar)? {
                parameters.0.push((name, value));
            }
        }
        Ok(parameters)
    }
}

/// A string, number or boolean; `None` for what is none of them.
struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Option<Parameter>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Option<Parameter>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a parameter")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Parameter::Boolean(value)))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(Parameter::Integer(value)))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        let integer = i64::try_from(value).map(Parameter::Integer);
        Ok(Some(integer.unwrap_or(Parameter::Number(value as f64))))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(Parameter::Number(value)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(Parameter::Text(value.to_owned())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Some clients send `null` for what they leave out.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
