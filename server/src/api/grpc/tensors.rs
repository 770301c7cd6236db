//! Tensors and parameters between gRPC's messages and the server's own.

use std::collections::HashMap;

use bytes::Bytes;

use super::super::classification;
use super::super::infer::{AnswerForm, OutputForm};
use super::proto;
use super::proto::infer_parameter::ParameterChoice;
use crate::infer::{InferRequest, InferResponse};
use crate::tensor::{Datatype, Parameter, Tensor, push_bytes_element};

/// Reads a request, whose tensors are all raw or all typed.
///
/// # Errors
/// A text: which input is wrong, what was expected and what came.
pub(super) fn read_request(
    request: proto::ModelInferRequest,
) -> Result<(InferRequest, AnswerForm), String> {
    let raw = request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        return Err(format!(
            "raw_input_contents: expected one for each of the {} inputs, got {}",
            request.inputs.len(),
            raw.len()
        ));
    }
    let mut raw = raw.into_iter();
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        let name = input.name.clone();
        let tensor = read_input(input, raw.next());
        inputs.push(tensor.map_err(|reason| format!("input `{name}`: {reason}"))?);
    }
    let mut outputs = Vec::with_capacity(request.outputs.len());
    let mut form = AnswerForm::default();
    for proto::model_infer_request::InferRequestedOutputTensor { name, parameters } in
        request.outputs
    {
        let parameters = read_parameters(parameters);
        let classes = parameters.iter().find(|(name, _)| name == "classification");
        let classes = classes.map_or(Ok(0), |(_, value)| classification::count(value));
        let classes = classes.map_err(|reason| format!("output `{name}`: {reason}"))?;
        form.own.push(OutputForm { name: name.clone(), binary: None, classes });
        outputs.push(name);
    }
    let parameters = read_parameters(request.parameters);
    Ok((InferRequest { inputs, outputs, parameters, timeout: None, key: None }, form))
}

fn read_input(
    input: proto::model_infer_request::InferInputTensor,
    raw: Option<Bytes>,
) -> Result<Tensor, String> {
    let datatype = Datatype::parse(&input.datatype)
        .ok_or_else(|| format!("unknown datatype `{}`", input.datatype))?;
    let shape = input.shape.iter().enumerate().map(|(dimension, &size)| {
        u64::try_from(size).map_err(|_| {
            format!("shape[{dimension}]: expected an integer of 0 or more, got {size}")
        })
    });
    let shape = shape.collect::<Result<Vec<u64>, _>>()?;
    let data = match (raw, input.contents) {
        (Some(_), Some(contents)) if contents != proto::InferTensorContents::default() => {
            return Err("it has both `contents` and raw_input_contents".to_owned());
        }
        (Some(raw), _) => raw.to_vec(),
        (None, Some(contents)) => read_contents(datatype, contents)?,
        (None, None) => Vec::new(),
    };
    Ok(Tensor { name: input.name, datatype, shape, data })
}

/// Takes the field of the datatype; the others must be empty.
fn read_contents(
    datatype: Datatype,
    contents: proto::InferTensorContents,
) -> Result<Vec<u8>, String> {
    let proto::InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let filled = [
        ("bool_contents", bool_contents.len()),
        ("int_contents", int_contents.len()),
        ("int64_contents", int64_contents.len()),
        ("uint_contents", uint_contents.len()),
        ("uint64_contents", uint64_contents.len()),
        ("fp32_contents", fp32_contents.len()),
        ("fp64_contents", fp64_contents.len()),
        ("bytes_contents", bytes_contents.len()),
    ];
    let expected = match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Bytes => "bytes_contents",
        Datatype::Fp16 | Datatype::Bf16 => {
            return Err(format!("{datatype} has no typed contents: send it as raw_input_contents"));
        }
    };
    if let Some((other, _)) = filled.iter().find(|(name, count)| *name != expected && *count > 0) {
        return Err(format!("expected the elements of {datatype} in {expected}, got {other}"));
    }
    fn narrow<S: Copy + std::fmt::Display, T: TryFrom<S>, const N: usize>(
        datatype: Datatype,
        values: &[S],
        bytes: impl Fn(T) -> [u8; N],
    ) -> Result<Vec<u8>, String> {
        let mut data = Vec::with_capacity(values.len() * N);
        for &value in values {
            let narrowed = T::try_from(value);
            let narrowed = narrowed.map_err(|_| format!("expected {datatype}, got {value}"))?;
            data.extend_from_slice(&bytes(narrowed));
        }
        Ok(data)
    }
    match datatype {
        Datatype::Bool => Ok(bool_contents.into_iter().map(u8::from).collect()),
        Datatype::Int8 => narrow(datatype, &int_contents, i8::to_le_bytes),
        Datatype::Int16 => narrow(datatype, &int_contents, i16::to_le_bytes),
        Datatype::Int32 => narrow(datatype, &int_contents, i32::to_le_bytes),
        Datatype::Int64 => narrow(datatype, &int64_contents, i64::to_le_bytes),
        Datatype::Uint8 => narrow(datatype, &uint_contents, u8::to_le_bytes),
        Datatype::Uint16 => narrow(datatype, &uint_contents, u16::to_le_bytes),
        Datatype::Uint32 => narrow(datatype, &uint_contents, u32::to_le_bytes),
        Datatype::Uint64 => narrow(datatype, &uint64_contents, u64::to_le_bytes),
        Datatype::Fp32 => narrow(datatype, &fp32_contents, f32::to_le_bytes),
        Datatype::Fp64 => narrow(datatype, &fp64_contents, f64::to_le_bytes),
        Datatype::Bytes | Datatype::Fp16 | Datatype::Bf16 => {
            let mut data = Vec::new();
            for element in &bytes_contents {
                push_bytes_element(&mut data, element)?;
            }
            Ok(data)
        }
    }
}

fn read_parameters(parameters: HashMap<String, proto::InferParameter>) -> Vec<(String, Parameter)> {
    let parameters = parameters.into_iter().filter_map(|(name, parameter)| {
        let value = match parameter.parameter_choice? {
            ParameterChoice::BoolParam(value) => Parameter::Boolean(value),
            ParameterChoice::Int64Param(value) => Parameter::Integer(value),
            ParameterChoice::StringParam(value) => Parameter::Text(value),
            ParameterChoice::DoubleParam(value) => Parameter::Number(value),
            ParameterChoice::Uint64Param(value) => match i64::try_from(value) {
                Ok(value) => Parameter::Integer(value),
                Err(_) => Parameter::Number(value as f64),
            },
        };
        Some((name, value))
    });
    let mut parameters: Vec<_> = parameters.collect();
    // A map has no order, and a guest must not see another one each time.
    parameters.sort_by(|(name, _), (other, _)| name.cmp(other));
    parameters
}

/// Writes an answer, its tensors raw.
pub(super) fn write_response(
    model: &str,
    version: String,
    id: String,
    response: InferResponse,
) -> proto::ModelInferResponse {
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut raw = Vec::with_capacity(response.outputs.len());
    for Tensor { name, datatype, shape, data } in response.outputs {
        outputs.push(proto::model_infer_response::InferOutputTensor {
            name,
            datatype: datatype.name().to_owned(),
            shape: shape.into_iter().map(u64::cast_signed).collect(),
            parameters: HashMap::new(),
            contents: None,
        });
        raw.push(data);
    }
    let parameters = response.parameters.into_iter();
    proto::ModelInferResponse {
        model_name: model.to_owned(),
        model_version: version,
        id,
        parameters: parameters.map(|(name, value)| (name, write_parameter(value))).collect(),
        outputs,
        raw_output_contents: raw,
    }
}

fn write_parameter(parameter: Parameter) -> proto::InferParameter {
    let choice = match parameter {
        Parameter::Boolean(value) => ParameterChoice::BoolParam(value),
        Parameter::Integer(value) => ParameterChoice::Int64Param(value),
        Parameter::Number(value) => ParameterChoice::DoubleParam(value),
        Parameter::Text(value) => ParameterChoice::StringParam(value),
    };
    proto::InferParameter { parameter_choice: Some(choice) }
}

pub(super) fn boolean(value: bool) -> proto::InferParameter {
    write_parameter(Parameter::Boolean(value))
}

pub(super) fn data_type(datatype: Datatype) -> proto::DataType {
    match datatype {
        Datatype::Bool => proto::DataType::TypeBool,
        Datatype::Uint8 => proto::DataType::TypeUint8,
        Datatype::Uint16 => proto::DataType::TypeUint16,
        Datatype::Uint32 => proto::DataType::TypeUint32,
        Datatype::Uint64 => proto::DataType::TypeUint64,
        Datatype::Int8 => proto::DataType::TypeInt8,
        Datatype::Int16 => proto::DataType::TypeInt16,
        Datatype::Int32 => proto::DataType::TypeInt32,
        Datatype::Int64 => proto::DataType::TypeInt64,
        Datatype::Fp16 => proto::DataType::TypeFp16,
        Datatype::Bf16 => proto::DataType::TypeBf16,
        Datatype::Fp32 => proto::DataType::TypeFp32,
        Datatype::Fp64 => proto::DataType::TypeFp64,
        Datatype::Bytes => proto::DataType::TypeString,
    }
}
