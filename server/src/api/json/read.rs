//! Reads the protocol's JSON into tensors: which fields there are, and what they may be. How
//! JSON is walked and how data is read stand elsewhere.

use std::borrow::Cow;

use super::super::classification;
use super::super::infer::{AnswerForm, OutputForm, Parsed};
use super::cursor::{Cursor, excerpt};
use super::data::{Fault, read_data};
use super::parameters::{Parameters, flag};
use crate::error::Error;
use crate::infer::InferRequest;
use crate::tensor::{Datatype, Parameter, Tensor};

/// Reads a request whose binary inputs, if any, lie in `tensors`, one after the other.
///
/// # Errors
/// Which field is wrong, what was expected and what came.
pub(in super::super) fn parse(json: &[u8], mut tensors: &[u8]) -> Result<Parsed, Error> {
    let invalid = |text: String| Error::InvalidInput(text);
    let body = RequestBody::read(json)
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
    let request =
        InferRequest { inputs, outputs, parameters: body.parameters.0, timeout: None, key: None };
    Ok(Parsed { request, id: body.id.map(Cow::into_owned), form })
}

/// Reads the outputs of an answer, whose tensors are all JSON.
///
/// # Errors
/// Which field is wrong, what was expected and what came.
pub(in super::super) fn parse_answer(json: &[u8]) -> Result<Vec<Tensor>, String> {
    let outputs = read_answer(json).map_err(|error| format!("not an inference answer: {error}"))?;
    let outputs = outputs.into_iter().map(|output| {
        let name = output.name.clone();
        let tensor = read_input(output, &mut &[][..]);
        let tensor = tensor.and_then(|tensor| tensor.check_length().map(|()| tensor));
        tensor.map_err(|reason| format!("output `{name}`: {reason}"))
    });
    outputs.collect()
}

/// Unknown fields and unknown parameters are ignored: clients send some of their own.
struct RequestBody<'a> {
    id: Option<Cow<'a, str>>,
    parameters: Parameters,
    inputs: Vec<InputBody<'a>>,
    outputs: Vec<OutputBody<'a>>,
}

impl<'a> RequestBody<'a> {
    fn read(json: &'a [u8]) -> Result<Self, String> {
        let cursor = &mut Cursor::new(json);
        if cursor.peek().is_some_and(|first| first != b'{') {
            return Err("expected a JSON object".to_owned());
        }
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
        cursor.object("an object", |cursor, key| match key {
            "id" => once(cursor, key, &mut id, |cursor| match cursor.takes_word("null") {
                true => Ok(None),
                false => cursor.text().map(Some),
            }),
            "parameters" => once(cursor, key, &mut parameters, Parameters::read),
            "inputs" => once(cursor, key, &mut inputs, |cursor| list(cursor, InputBody::read)),
            "outputs" => {
                once(cursor, key, &mut outputs, |cursor| match cursor.takes_word("null") {
                    true => Ok(Vec::new()),
                    false => list(cursor, OutputBody::read),
                })
            }
            _ => cursor.skip(false),
        })?;
        let inputs = inputs.ok_or_else(|| cursor.error("missing field `inputs`"))?;
        cursor.end()?;
        Ok(Self {
            id: id.flatten(),
            parameters: parameters.unwrap_or_default(),
            inputs,
            outputs: outputs.unwrap_or_default(),
        })
    }
}

fn read_answer(json: &[u8]) -> Result<Vec<InputBody<'_>>, String> {
    let cursor = &mut Cursor::new(json);
    let mut outputs = None;
    cursor.object("an object", |cursor, key| match key {
        "outputs" => once(cursor, key, &mut outputs, |cursor| list(cursor, InputBody::read)),
        _ => cursor.skip(false),
    })?;
    let outputs = outputs.ok_or_else(|| cursor.error("missing field `outputs`"))?;
    cursor.end().map(|()| outputs)
}

/// Reads a field that may come but once.
fn once<'a, T>(
    cursor: &mut Cursor<'a>,
    name: &str,
    field: &mut Option<T>,
    read: impl FnOnce(&mut Cursor<'a>) -> Result<T, String>,
) -> Result<(), String> {
    if field.is_some() {
        return Err(cursor.error(format_args!("duplicate field `{name}`")));
    }
    *field = Some(read(cursor)?);
    Ok(())
}

fn list<'a, T>(
    cursor: &mut Cursor<'a>,
    read: impl Fn(&mut Cursor<'a>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut values = Vec::new();
    cursor.list(|cursor| {
        values.push(read(cursor)?);
        Ok(())
    })?;
    Ok(values)
}

struct InputBody<'a> {
    name: Cow<'a, str>,
    datatype: Cow<'a, str>,
    shape: Shape,
    parameters: Parameters,
    data: Option<Data<'a>>,
}

/// What is wrong with it is told once the input's name is known, wherever that stands.
type Shape = Result<Vec<u64>, String>;

enum Data<'a> {
    /// It came after the datatype, and what is wrong with it is told as with the shape.
    Read(Result<Vec<u8>, String>),
    /// Where it stands: its datatype was not known yet.
    Unread(Cursor<'a>),
}

impl<'a> InputBody<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, String> {
        let (mut name, mut datatype, mut shape) = (None, None, None);
        let (mut parameters, mut data) = (None, None);
        cursor.object("an object", |cursor, key| match key {
            "name" => once(cursor, key, &mut name, Cursor::text),
            "datatype" => once(cursor, key, &mut datatype, Cursor::text),
            "shape" => once(cursor, key, &mut shape, read_shape),
            "parameters" => once(cursor, key, &mut parameters, Parameters::read),
            "data" => once(cursor, key, &mut data, |cursor| {
                Data::read(cursor, datatype.as_deref(), shape.as_ref())
            }),
            _ => cursor.skip(false),
        })?;
        let missing = |name| cursor.error(format_args!("missing field `{name}`"));
        Ok(Self {
            name: name.ok_or_else(|| missing("name"))?,
            datatype: datatype.ok_or_else(|| missing("datatype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            parameters: parameters.unwrap_or_default(),
            data: data.flatten(),
        })
    }
}

impl<'a> Data<'a> {
    fn read(
        cursor: &mut Cursor<'a>,
        datatype: Option<&str>,
        shape: Option<&Shape>,
    ) -> Result<Option<Self>, String> {
        if cursor.takes_word("null") {
            return Ok(None);
        }
        let start = cursor.clone();
        if let Some(datatype) = datatype.and_then(Datatype::parse) {
            let shape = shape.and_then(|shape| shape.as_deref().ok()).unwrap_or_default();
            match read_data(cursor, datatype, shape) {
                Ok(data) => return Ok(Some(Data::Read(Ok(data)))),
                Err(Fault::Syntax(error)) => return Err(error),
                Err(Fault::Element(reason)) => {
                    *cursor = start;
                    cursor.skip(true)?;
                    return Ok(Some(Data::Read(Err(reason))));
                }
            }
        }
        cursor.skip(true)?;
        Ok(Some(Data::Unread(start)))
    }
}

struct OutputBody<'a> {
    name: Cow<'a, str>,
    parameters: Parameters,
}

impl<'a> OutputBody<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, String> {
        let (mut name, mut parameters) = (None, None);
        cursor.object("an object", |cursor, key| match key {
            "name" => once(cursor, key, &mut name, Cursor::text),
            "parameters" => once(cursor, key, &mut parameters, Parameters::read),
            _ => cursor.skip(false),
        })?;
        let name = name.ok_or_else(|| cursor.error("missing field `name`"))?;
        Ok(Self { name, parameters: parameters.unwrap_or_default() })
    }
}

fn read_input(input: InputBody<'_>, tensors: &mut &[u8]) -> Result<Tensor, String> {
    let datatype = Datatype::parse(&input.datatype)
        .ok_or_else(|| format!("unknown datatype `{}`", input.datatype))?;
    let shape = input.shape?;
    let data = match (input.parameters.get("binary_data_size"), input.data) {
        (Some(_), Some(_)) => return Err("it has both `data` and `binary_data_size`".to_owned()),
        (None, None) => {
            return Err("it has neither `data` nor `parameters.binary_data_size`".to_owned());
        }
        (Some(size), None) => take_binary(size, tensors)?.to_vec(),
        (None, Some(_)) if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) => {
            return Err(format!(
                "{datatype} cannot be sent as JSON: send it as binary tensor data"
            ));
        }
        (None, Some(Data::Read(data))) => data?,
        (None, Some(Data::Unread(mut cursor))) => read_data(&mut cursor, datatype, &shape)
            .map_err(|(Fault::Syntax(reason) | Fault::Element(reason))| reason)?,
    };
    Ok(Tensor { name: input.name.into_owned(), datatype, shape, data })
}

fn take_binary<'a>(size: &Parameter, tensors: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let length = size.as_count().and_then(|size| usize::try_from(size).ok());
    let split = length.and_then(|length| tensors.split_at_checked(length));
    let (data, rest) = split.ok_or_else(|| {
        format!(
            "`binary_data_size`: expected at most the {} bytes left in the body, got {size}",
            tensors.len()
        )
    })?;
    *tensors = rest;
    Ok(data)
}

fn read_shape(cursor: &mut Cursor<'_>) -> Result<Shape, String> {
    let mut shape = Ok(Vec::new());
    let mut dimension = 0;
    cursor.list(|cursor| {
        if !matches!(cursor.peek(), Some(b'-' | b'0'..=b'9')) {
            return Err(cursor.unexpected("an integer of 0 or more"));
        }
        let size = cursor.number()?;
        let whole = || Parameter::Number(size.parse().ok()?).as_count();
        match (&mut shape, size.parse().ok().or_else(whole)) {
            (Ok(shape), Some(size)) => shape.push(size),
            (Ok(_), None) => {
                let size = excerpt(size);
                shape = Err(format!(
                    "shape[{dimension}]: expected an integer of 0 or more, got {size}"
                ));
            }
            (Err(_), _) => {}
        }
        dimension += 1;
        Ok(())
    })?;
    Ok(shape)
}

fn output_form(name: &str, parameters: &Parameters) -> Result<OutputForm, String> {
    let binary = flag(parameters, "binary_data")?;
    let classes = parameters.get("classification").map_or(Ok(0), classification::count)?;
    Ok(OutputForm { name: name.to_owned(), binary, classes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(inputs: &str) -> Result<Vec<Tensor>, String> {
        let body = format!(r#"{{"inputs":[{inputs}]}}"#);
        let parsed = parse(body.as_bytes(), &[]).map_err(|error| error.to_string())?;
        Ok(parsed.request.inputs)
    }

    /// Reads one tensor, its data in front of its datatype as well as behind it.
    fn data(datatype: &str, data: &str) -> Result<Vec<u8>, String> {
        let (head, data) = (
            format!(r#""shape":[1],"datatype":"{datatype}","name":"x""#),
            format!(r#""data":{data}"#),
        );
        let known = read(&format!("{{{head},{data}}}")).map(|mut inputs| inputs.remove(0).data);
        let unknown = read(&format!("{{{data},{head}}}")).map(|mut inputs| inputs.remove(0).data);
        assert_eq!(known, unknown);
        known
    }

    #[test]
    fn data_is_nested_flat_or_alone() {
        let expected: Vec<u8> = [1f32, 2.5, -3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        for text in ["[1,2.5,-3]", "[ [1 , 2.5],\n[-3.0] , [] ]", "[[[[1]]],25e-1,[-0.3E+1]]"] {
            assert_eq!(data("FP32", text), Ok(expected.clone()));
        }
        assert_eq!(data("FP32", "1"), Ok(expected[..4].to_vec()));
        assert_eq!(data("BOOL", "[true,[false]]"), Ok(vec![1, 0]));
        assert_eq!(data("BYTES", r#"["a\u00e4",""]"#), Ok(b"\x03\0\0\0a\xc3\xa4\0\0\0\0".to_vec()));
        assert_eq!(data("INT8", "[-128,127,-0]"), Ok(vec![128, 127, 0]));
        let numbers: Vec<u8> = (0..100).collect();
        assert_eq!(data("UINT8", &format!("{numbers:?}")), Ok(numbers));
    }

    #[test]
    fn what_is_wrong_with_data_is_named() {
        for (datatype, text, expected) in [
            (
                "FP32",
                "[NaN]",
                "JSON has no NaN: send the tensor as binary tensor data at line 1 column 4",
            ),
            (
                "FP32",
                "[1, -Infinity]",
                "JSON has no -Infinity: send the tensor as binary tensor data at line 1 column 13",
            ),
            ("FP32", "[1e39]", "expected FP32, got 1e39 at line 1 column 5"),
            ("FP64", "[1e400]", "expected FP64, got 1e400 at line 1 column 6"),
            ("INT32", "[1,1.0]", "expected INT32, got 1.0 at line 1 column 6"),
            ("UINT8", "[1,256]", "expected UINT8, got 256 at line 1 column 6"),
            ("BYTES", "[1]", "expected BYTES, got 1 at line 1 column 2"),
            ("BOOL", "[\n1]", "expected BOOL, got 1 at line 2 column 1"),
            ("FP32", "[{}]", "expected FP32, got an object at line 1 column 1"),
            ("FP32", "[true]", "expected FP32, got true at line 1 column 5"),
            (
                "FP32",
                "[null]",
                "invalid type: null, expected FP32 or a list of them at line 1 column 5",
            ),
        ] {
            assert_eq!(data(datatype, text), Err(format!("input `x`: `data`: {expected}")));
        }
        let deep = "[".repeat(128) + &"]".repeat(128);
        let input =
            |data: &str| format!(r#"{{"name":"x","datatype":"FP32","shape":[1],"data":{data}}}"#);
        assert!(read(&input(&deep)).is_err_and(|error| error.contains("recursion limit")));
        assert!(read(&input(&deep[1..255])).is_ok());
    }

    #[test]
    fn a_shape_takes_no_more_memory_than_its_text() {
        let input = r#"{"name":"x","datatype":"FP64","shape":[1000000000],"data":[1,2]}"#;
        let inputs = read(&[input; 100].join(",")).expect("it is only too short");
        assert!(inputs.iter().all(|input| input.data.capacity() < 100));
    }

    #[test]
    fn outputs_say_what_they_want() {
        let parse = |outputs: &str| {
            parse(format!(r#"{{"inputs":[],"outputs":{outputs}}}"#).as_bytes(), &[])
        };
        let parsed =
            parse(r#"[{"name":"y","parameters":{"classification":3,"binary_data":true}}]"#);
        let parsed = parsed.unwrap();
        let [OutputForm { name, binary, classes }] = &parsed.form.own[..] else { panic!() };
        assert_eq!((name.as_str(), *binary, *classes), ("y", Some(true), 3));
        assert_eq!(parsed.request.outputs, ["y"]);
        let error = parse(r#"[{"name":"y","parameters":{"classification":-1}}]"#).err().unwrap();
        assert_eq!(
            error.to_string(),
            "output `y`: parameter `classification`: expected an integer of 0 or more, got -1"
        );
        assert!(parse("null").is_ok());
    }
}
