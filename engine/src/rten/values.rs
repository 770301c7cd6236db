//! Tensors in and out of rten's own type, and its names of datatypes.

use std::borrow::Cow;

use rten::DataType;
use rten_tensor::prelude::*;

use crate::tensor::{Datatype, Value};

/// What rten keeps elements of a datatype in, if it can keep all or nearly all of them: doubles
/// would lose their last digits, and halves come back as what they are not.
pub(super) fn element_of(datatype: Datatype) -> Option<DataType> {
    Some(match datatype {
        Datatype::Fp32 => DataType::Float,
        Datatype::Int32 | Datatype::Int64 | Datatype::Bool => DataType::Int32,
        Datatype::Int8 => DataType::Int8,
        Datatype::Uint8 => DataType::UInt8,
        Datatype::Uint16 | Datatype::Uint32 | Datatype::Uint64 | Datatype::Int16 => return None,
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp64 | Datatype::Bytes => return None,
    })
}

/// The datatype that is itself in rten.
pub(super) fn datatype_of(element: DataType) -> Option<Datatype> {
    Some(match element {
        DataType::Float => Datatype::Fp32,
        DataType::Int32 => Datatype::Int32,
        DataType::Int8 => Datatype::Int8,
        DataType::UInt8 => Datatype::Uint8,
        _ => return None,
    })
}

pub(super) fn to_rten(value: &Value<'_>) -> Result<rten::Value, String> {
    match value.datatype {
        Datatype::Fp32 => shaped(value, elements(&value.data, f32::from_le_bytes)),
        Datatype::Int32 => shaped(value, elements(&value.data, i32::from_le_bytes)),
        Datatype::Int64 => {
            let wide = value.data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes));
            let narrow = wide.map(|element| {
                i32::try_from(element)
                    .map_err(|_| format!("rten keeps INT64 in 32 bits, got {element}"))
            });
            shaped(value, narrow.collect::<Result<Vec<i32>, _>>()?)
        }
        Datatype::Bool => shaped(value, elements(&value.data, |[byte]| i32::from(byte))),
        Datatype::Int8 => shaped(value, elements(&value.data, i8::from_le_bytes)),
        Datatype::Uint8 => shaped(value, value.data.to_vec()),
        other => Err(format!("rten has no {other}")),
    }
}

fn elements<T, const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
}

fn shaped<T>(value: &Value<'_>, elements: Vec<T>) -> Result<rten::Value, String>
where
    rten::Value: From<rten_tensor::Tensor<T>>,
{
    rten::Value::from_shape(&value.shape, elements).map_err(|error| error.to_string())
}

/// Gives an output the datatype that the file declares.
pub(super) fn from_rten(value: rten::Value, datatype: Datatype) -> Result<Value<'static>, String> {
    let shape = value.shape().to_vec();
    let data = match (value, datatype) {
        (rten::Value::FloatTensor(tensor), Datatype::Fp32) => {
            bytes(&tensor.into_data(), f32::to_le_bytes)
        }
        (rten::Value::Int32Tensor(tensor), Datatype::Int32) => {
            bytes(&tensor.into_data(), i32::to_le_bytes)
        }
        (rten::Value::Int32Tensor(tensor), Datatype::Int64) => {
            bytes(&tensor.into_data(), |element| i64::from(element).to_le_bytes())
        }
        (rten::Value::Int32Tensor(tensor), Datatype::Bool) => {
            bytes(&tensor.into_data(), |element| [u8::from(element != 0)])
        }
        (rten::Value::Int8Tensor(tensor), Datatype::Int8) => {
            bytes(&tensor.into_data(), i8::to_le_bytes)
        }
        (rten::Value::UInt8Tensor(tensor), Datatype::Uint8) => tensor.into_data(),
        (value, _) => {
            return Err(format!("an output is declared {datatype} and came as {}", value.dtype()));
        }
    };
    Ok(Value { datatype, shape, data: Cow::Owned(data) })
}

fn bytes<T: Copy, const N: usize>(elements: &[T], write: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    elements.iter().flat_map(|&element| write(element)).collect()
}
