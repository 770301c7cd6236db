//! Tensors in and out of tract's own type, and its names of datatypes. BF16 is FP32 inside.

use std::borrow::Cow;

use half::bf16;
use tract_onnx::prelude::*;

use crate::narrow::Narrow;
use crate::tensor::{Datatype, Value, bytes_elements, push_bytes_element};

pub(super) fn to_tract(value: &Value<'_>) -> Result<Tensor, String> {
    let text = |error: TractError| error.to_string();
    if value.datatype == Datatype::Bytes {
        let strings = bytes_elements(&value.data).map(|element| {
            let element = element?;
            let string = std::str::from_utf8(element);
            string.map(str::to_owned).map_err(|_| "a string is not UTF-8".to_owned())
        });
        let strings: Vec<String> = strings.collect::<Result<_, _>>()?;
        let array = tract_ndarray::ArrayD::from_shape_vec(&value.shape[..], strings);
        return Ok(array.map_err(|error| error.to_string())?.into_tensor());
    }
    if value.datatype == Datatype::Bf16 {
        return widened(Narrow::Bf16, &value.shape, &value.data).map_err(text);
    }
    let datum =
        datum_of(value.datatype).ok_or_else(|| format!("the engine has no {}", value.datatype))?;
    // SAFETY: `data` is exactly shape × size bytes, every bit pattern is a value of these number
    // types, and booleans are 0 or 1: so `Session::run` is called.
    let copied = unsafe { Tensor::from_raw_dt(datum, &value.shape, &value.data) };
    copied.map_err(text)
}

/// FP32 of floats that are narrower, and as long as their shape says.
pub(super) fn widened(narrow: Narrow, shape: &[usize], data: &[u8]) -> TractResult<Tensor> {
    let numbers = narrow.read(data, shape.iter().product(), |number| number);
    Ok(tract_ndarray::ArrayD::from_shape_vec(shape, numbers)?.into_tensor())
}

/// The value of an output that is declared of that datatype.
pub(super) fn from_tract(value: &Tensor, declared: Datatype) -> Result<Value<'static>, String> {
    let text = |error: TractError| error.to_string();
    let cast;
    let value = if value.datum_type() == DatumType::TDim {
        cast = value.cast_to_dt(DatumType::I64).map_err(text)?;
        &cast
    } else {
        value
    };
    let datum = value.datum_type();
    let datatype =
        datatype_of(datum, declared).ok_or_else(|| format!("{datum:?} is not served"))?;
    let plain = value.try_as_plain_ram().map_err(text)?;
    let data = match datatype {
        Datatype::Bytes => {
            let mut data = Vec::new();
            for element in plain.as_slice::<String>().map_err(text)? {
                push_bytes_element(&mut data, element.as_bytes())?;
            }
            data
        }
        Datatype::Bf16 => {
            let numbers = plain.as_slice::<f32>().map_err(text)?.iter();
            numbers.flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect()
        }
        _ => plain.as_bytes().to_vec(),
    };
    Ok(Value { datatype, shape: value.shape().to_vec(), data: Cow::Owned(data) })
}

/// Whether tensors of a datatype can be made.
pub(super) fn has(datatype: Datatype) -> bool {
    matches!(datatype, Datatype::Bf16 | Datatype::Bytes) || datum_of(datatype).is_some()
}

fn datum_of(datatype: Datatype) -> Option<DatumType> {
    Some(match datatype {
        Datatype::Bool => DatumType::Bool,
        Datatype::Uint8 => DatumType::U8,
        Datatype::Uint16 => DatumType::U16,
        Datatype::Uint32 => DatumType::U32,
        Datatype::Uint64 => DatumType::U64,
        Datatype::Int8 => DatumType::I8,
        Datatype::Int16 => DatumType::I16,
        Datatype::Int32 => DatumType::I32,
        Datatype::Int64 => DatumType::I64,
        Datatype::Fp16 => DatumType::F16,
        Datatype::Fp32 => DatumType::F32,
        Datatype::Fp64 => DatumType::F64,
        Datatype::Bf16 | Datatype::Bytes => return None,
    })
}

/// What a tensor is to a client, to whom it is declared of a datatype.
pub(super) fn datatype_of(datum: DatumType, declared: Datatype) -> Option<Datatype> {
    Some(match datum.unquantized() {
        DatumType::Bool => Datatype::Bool,
        DatumType::U8 => Datatype::Uint8,
        DatumType::U16 => Datatype::Uint16,
        DatumType::U32 => Datatype::Uint32,
        DatumType::U64 => Datatype::Uint64,
        DatumType::I8 => Datatype::Int8,
        DatumType::I16 => Datatype::Int16,
        DatumType::I32 => Datatype::Int32,
        // tract's symbolic integers stand for ONNX's 64-bit shapes.
        DatumType::I64 | DatumType::TDim => Datatype::Int64,
        DatumType::F16 => Datatype::Fp16,
        DatumType::F32 if declared == Datatype::Bf16 => Datatype::Bf16,
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        DatumType::String => Datatype::Bytes,
        _ => return None,
    })
}
