//! A request in each of the protocol's forms, so that one table is asked in all of them.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::grpc::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::grpc::proto::{InferTensorContents, ModelInferRequest, ModelInferResponse};
use super::grpc::{Grpc, kind};
use super::{Reply, Server};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON both ways.
    Json,
    /// The binary tensor data extension, for all tensors both ways.
    Binary,
    /// gRPC with raw_input_contents.
    Raw,
    /// gRPC with the field of each datatype.
    Typed,
}

impl Form {
    pub const ALL: [Self; 4] = [Self::Json, Self::Binary, Self::Raw, Self::Typed];
    /// Those that carry bytes as they are.
    pub const BYTES: [Self; 2] = [Self::Binary, Self::Raw];

    /// What a wrong request gets in this form.
    pub fn bad_request(self) -> &'static str {
        match self {
            Self::Json | Self::Binary => "400",
            Self::Raw | Self::Typed => "InvalidArgument",
        }
    }
}

/// A tensor as bytes; a test may let it lie.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub datatype: String,
    pub shape: Vec<i64>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn new(name: &str, datatype: &str, shape: &[i64], data: &[u8]) -> Self {
        let (name, datatype) = (name.to_owned(), datatype.to_owned());
        Self { name, datatype, shape: shape.to_vec(), data: data.to_vec() }
    }

    /// The same under another name.
    pub fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// As an input in JSON.
    pub fn json(&self) -> Value {
        let data = json_elements(&self.datatype, &self.data);
        json!({"name": self.name, "datatype": self.datatype, "shape": self.shape, "data": data})
    }

    /// As an input whose data stands behind the JSON.
    pub fn binary(&self) -> Value {
        let parameters = json!({"binary_data_size": self.data.len()});
        json!({"name": self.name, "datatype": self.datatype, "shape": self.shape, "parameters": parameters})
    }

    fn grpc(&self, contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor {
            name: self.name.clone(),
            datatype: self.datatype.clone(),
            shape: self.shape.clone(),
            parameters: HashMap::new(),
            contents,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Infer {
    pub model: String,
    pub id: Option<String>,
    pub inputs: Vec<Tensor>,
    /// Empty: all of them.
    pub outputs: Vec<String>,
}

impl Infer {
    pub fn new(model: &str, inputs: &[Tensor]) -> Self {
        Self { model: model.to_owned(), inputs: inputs.to_vec(), ..Self::default() }
    }

    pub fn wanting(self, outputs: &[&str]) -> Self {
        Self { outputs: outputs.iter().map(|&output| output.to_owned()).collect(), ..self }
    }

    /// The body of a JSON request.
    pub fn json(&self) -> Value {
        self.head(Tensor::json)
    }

    /// The JSON of a binary request, that asks for binary outputs, and the tensors behind it.
    pub fn binary(&self) -> (Value, Vec<u8>) {
        let mut head = self.head(Tensor::binary);
        head["parameters"] = json!({"binary_data_output": true});
        (head, self.inputs.iter().flat_map(|input| input.data.clone()).collect())
    }

    fn head(&self, input: fn(&Tensor) -> Value) -> Value {
        let mut head = json!({"inputs": self.inputs.iter().map(input).collect::<Vec<_>>()});
        if let Some(id) = &self.id {
            head["id"] = json!(id);
        }
        if !self.outputs.is_empty() {
            head["outputs"] = self.outputs.iter().map(|name| json!({"name": name})).collect();
        }
        head
    }

    /// A gRPC request with `raw_input_contents`.
    pub fn raw(&self) -> ModelInferRequest {
        ModelInferRequest {
            inputs: self.inputs.iter().map(|input| input.grpc(None)).collect(),
            raw_input_contents: self.inputs.iter().map(|input| input.data.clone().into()).collect(),
            ..self.grpc()
        }
    }

    /// A gRPC request with typed contents.
    pub fn typed(&self) -> ModelInferRequest {
        let typed = |input: &Tensor| input.grpc(Some(contents(&input.datatype, &input.data)));
        ModelInferRequest { inputs: self.inputs.iter().map(typed).collect(), ..self.grpc() }
    }

    fn grpc(&self) -> ModelInferRequest {
        let output = |name: &String| InferRequestedOutputTensor {
            name: name.clone(),
            parameters: HashMap::new(),
        };
        ModelInferRequest {
            model_name: self.model.clone(),
            id: self.id.clone().unwrap_or_default(),
            outputs: self.outputs.iter().map(output).collect(),
            ..ModelInferRequest::default()
        }
    }
}

#[derive(Debug, PartialEq)]
pub struct Answer {
    pub id: Option<String>,
    pub outputs: Vec<Tensor>,
}

/// An error: `400` or `InvalidArgument`, the server's word for it, and its text.
#[derive(Debug, PartialEq)]
pub struct Refused {
    pub code: String,
    pub kind: String,
    pub text: String,
}

/// A server and a connection of each protocol to it.
pub struct Client {
    pub grpc: Grpc,
    pub server: Server,
}

impl Client {
    pub fn start(paths: &[PathBuf], flags: &[&str]) -> Self {
        let server = Server::start_with(paths, flags);
        Self { grpc: Grpc::connect(&server), server }
    }

    pub fn ask(&self, form: Form, infer: &Infer) -> Result<Answer, Refused> {
        match form {
            Form::Json => read_rest(&self.server.infer(&infer.model, &infer.json())),
            Form::Binary => {
                let (head, tensors) = infer.binary();
                read_rest(&self.infer_binary(&infer.model, &head, &tensors))
            }
            Form::Raw => self.ask_grpc(&infer.raw()),
            Form::Typed => self.ask_grpc(&infer.typed()),
        }
    }

    /// Posts JSON and the tensors behind it.
    pub fn infer_binary(&self, model: &str, head: &Value, tensors: &[u8]) -> Reply {
        let head = head.to_string();
        let length = head.len().to_string();
        let body = [head.as_bytes(), tensors].concat();
        let headers = [("Inference-Header-Content-Length", length.as_str())];
        self.server.post(&format!("/v2/models/{model}/infer"), &headers, &body)
    }

    pub fn ask_grpc(&self, request: &ModelInferRequest) -> Result<Answer, Refused> {
        let answer = self.grpc.call("ModelInfer", request);
        answer.map(read_grpc).map_err(|status| Refused {
            code: format!("{:?}", status.code()),
            kind: kind(&status).to_owned(),
            text: status.message().to_owned(),
        })
    }
}

fn read_grpc(answer: ModelInferResponse) -> Answer {
    let (outputs, raw) = (answer.outputs, answer.raw_output_contents);
    assert_eq!(outputs.len(), raw.len(), "clients read nothing but raw contents");
    let outputs = outputs.into_iter().zip(raw).map(|(output, raw)| {
        assert_eq!(output.contents, None, "typed contents break clients");
        Tensor::new(&output.name, &output.datatype, &output.shape, &raw)
    });
    let outputs = outputs.collect();
    // There is no other way to say that there is none.
    Answer { id: (!answer.id.is_empty()).then_some(answer.id), outputs }
}

/// Reads an answer whose outputs are JSON or binary.
pub fn read_rest(reply: &Reply) -> Result<Answer, Refused> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if reply.status != 200 {
        let kind = reply.header("wisp-error").unwrap_or_default().to_owned();
        let text = text(&reply.json()["error"]).expect("an error's text");
        return Err(Refused { code: reply.status.to_string(), kind, text });
    }
    let length = reply.header("inference-header-content-length");
    let length = length.map_or(reply.body.len(), |length| length.parse().expect("a number"));
    let (head, mut tensors) = reply.body.split_at(length);
    let head: Value = serde_json::from_slice(head).expect("JSON");
    let mut outputs = Vec::new();
    for output in head["outputs"].as_array().expect("a list") {
        let datatype = text(&output["datatype"]).expect("a datatype");
        let data = match output["parameters"]["binary_data_size"].as_u64() {
            Some(size) => tensors.split_off(..size as usize).expect("as long as it says").to_vec(),
            None => bytes_of_json(&datatype, &output["data"]),
        };
        let name = text(&output["name"]).expect("a name");
        let shape = serde_json::from_value(output["shape"].clone()).expect("a shape");
        outputs.push(Tensor { name, datatype, shape, data });
    }
    assert!(tensors.is_empty(), "{} bytes follow the last output", tensors.len());
    Ok(Answer { id: text(&head["id"]), outputs })
}

/// The bytes of numbers.
pub fn bytes_of<T: Copy, const N: usize>(values: &[T], to_bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_bytes(value)).collect()
}

/// The data of a BYTES tensor.
pub fn bytes_elements<T: AsRef<[u8]>>(elements: &[T]) -> Vec<u8> {
    let mut data = Vec::new();
    for element in elements {
        let element = element.as_ref();
        data.extend((element.len() as u32).to_le_bytes());
        data.extend(element);
    }
    data
}

fn split_elements(mut data: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let (element, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        elements.push(element);
        data = rest;
    }
    elements
}

/// Elements as JSON; those that have no form there as some number, to see them refused.
fn json_elements(datatype: &str, data: &[u8]) -> Vec<Value> {
    macro_rules! numbers {
        ($type:ty) => {{
            let chunks = data.as_chunks().0.iter();
            chunks.map(|bytes| json!(<$type>::from_le_bytes(*bytes))).collect()
        }};
    }
    match datatype {
        "BOOL" => data.iter().map(|&byte| json!(byte != 0)).collect(),
        "UINT8" => numbers!(u8),
        "UINT16" | "FP16" | "BF16" => numbers!(u16),
        "UINT32" => numbers!(u32),
        "UINT64" => numbers!(u64),
        "INT8" => numbers!(i8),
        "INT16" => numbers!(i16),
        "INT32" => numbers!(i32),
        "INT64" => numbers!(i64),
        "FP64" => numbers!(f64),
        "BYTES" => {
            let elements = split_elements(data).into_iter();
            elements.map(|element| json!(String::from_utf8_lossy(element))).collect()
        }
        _ => numbers!(f32),
    }
}

fn bytes_of_json(datatype: &str, data: &Value) -> Vec<u8> {
    macro_rules! numbers {
        ($type:ty) => {{
            let values: Vec<$type> = serde_json::from_value(data.clone()).expect("such numbers");
            bytes_of(&values, <$type>::to_le_bytes)
        }};
    }
    match datatype {
        "BOOL" => {
            let values: Vec<bool> = serde_json::from_value(data.clone()).expect("true and false");
            values.into_iter().map(u8::from).collect()
        }
        "UINT8" => numbers!(u8),
        "UINT16" => numbers!(u16),
        "UINT32" => numbers!(u32),
        "UINT64" => numbers!(u64),
        "INT8" => numbers!(i8),
        "INT16" => numbers!(i16),
        "INT32" => numbers!(i32),
        "INT64" => numbers!(i64),
        "FP32" => numbers!(f32),
        "FP64" => numbers!(f64),
        "BYTES" => {
            let values: Vec<String> = serde_json::from_value(data.clone()).expect("strings");
            bytes_elements(&values)
        }
        other => panic!("{other} has no form in JSON"),
    }
}

/// Elements in the field of their datatype; in some field where there is none.
fn contents(datatype: &str, data: &[u8]) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    macro_rules! numbers {
        ($field:ident, $type:ty) => {{
            let chunks = data.as_chunks().0.iter();
            contents.$field = chunks.map(|bytes| <$type>::from_le_bytes(*bytes).into()).collect();
        }};
    }
    match datatype {
        "BOOL" => contents.bool_contents = data.iter().map(|&byte| byte != 0).collect(),
        "UINT8" => numbers!(uint_contents, u8),
        "UINT16" | "FP16" | "BF16" => numbers!(uint_contents, u16),
        "UINT32" => numbers!(uint_contents, u32),
        "UINT64" => numbers!(uint64_contents, u64),
        "INT8" => numbers!(int_contents, i8),
        "INT16" => numbers!(int_contents, i16),
        "INT32" => numbers!(int_contents, i32),
        "INT64" => numbers!(int64_contents, i64),
        "FP64" => numbers!(fp64_contents, f64),
        "BYTES" => {
            contents.bytes_contents =
                split_elements(data).into_iter().map(<[u8]>::to_vec).collect();
        }
        _ => numbers!(fp32_contents, f32),
    }
    contents
}
