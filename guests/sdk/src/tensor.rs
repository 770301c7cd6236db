//! Tensors, contracts and requests made and read without byte juggling.

use std::borrow::Cow;

use crate::{Datatype, Error, Parameter, Request, Response, Tensor, TensorSpec};

impl TensorSpec {
    /// A tensor of `datatype` whose `shape` may hold -1 for any size.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: impl IntoIterator<Item = i64>,
    ) -> Self {
        Self { name: name.into(), datatype, shape: shape.into_iter().collect() }
    }
}

impl Datatype {
    /// The protocol's name, as `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            Datatype::Bool => "BOOL",
            Datatype::Uint8 => "UINT8",
            Datatype::Uint16 => "UINT16",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Int8 => "INT8",
            Datatype::Int16 => "INT16",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Fp16 => "FP16",
            Datatype::Bf16 => "BF16",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bytes => "BYTES",
        }
    }
}

impl Tensor {
    /// A float tensor; `values` is row-major and as long as `shape` says.
    pub fn fp32(name: impl Into<String>, shape: &[u64], values: &[f32]) -> Self {
        let data = le_bytes(values).to_vec();
        Self { name: name.into(), datatype: Datatype::Fp32, shape: shape.to_vec(), data }
    }

    /// A tensor of 32-bit integers; `values` is row-major and as long as `shape` says.
    pub fn int32(name: impl Into<String>, shape: &[u64], values: &[i32]) -> Self {
        let data = le_bytes(values).to_vec();
        Self { name: name.into(), datatype: Datatype::Int32, shape: shape.to_vec(), data }
    }

    /// A tensor of 64-bit integers; `values` is row-major and as long as `shape` says.
    pub fn int64(name: impl Into<String>, shape: &[u64], values: &[i64]) -> Self {
        let data = le_bytes(values).to_vec();
        Self { name: name.into(), datatype: Datatype::Int64, shape: shape.to_vec(), data }
    }

    /// A one-dimensional tensor of byte strings.
    pub fn bytes<T: AsRef<[u8]>>(name: impl Into<String>, elements: &[T]) -> Self {
        let mut data = Vec::new();
        for element in elements {
            let element = element.as_ref();
            let length = u32::try_from(element.len()).expect("guest memory ends at 4 GiB");
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(element);
        }
        Self {
            name: name.into(),
            datatype: Datatype::Bytes,
            shape: vec![elements.len() as u64],
            data,
        }
    }

    /// The elements of an FP32 tensor, borrowed where their bytes are aligned.
    ///
    /// # Errors
    /// The tensor is of another datatype.
    pub fn to_fp32(&self) -> Result<Cow<'_, [f32]>, Error> {
        self.expect(Datatype::Fp32)?;
        Ok(fp32_from_le(&self.data))
    }

    /// The elements of a BYTES tensor.
    ///
    /// # Errors
    /// The tensor is of another datatype, or a length runs past the end of its data.
    pub fn to_bytes(&self) -> Result<Vec<&[u8]>, Error> {
        self.expect(Datatype::Bytes)?;
        let mut elements = Vec::new();
        let mut rest = self.data.as_slice();
        while !rest.is_empty() {
            let element = rest.split_first_chunk::<4>().and_then(|(length, tail)| {
                let length = u32::from_le_bytes(*length) as usize;
                tail.split_at_checked(length)
            });
            let Some((element, tail)) = element else {
                return Err(Error::InvalidInput(format!(
                    "input `{}`: element {} is longer than the data",
                    self.name,
                    elements.len()
                )));
            };
            elements.push(element);
            rest = tail;
        }
        Ok(elements)
    }

    fn expect(&self, datatype: Datatype) -> Result<(), Error> {
        if self.datatype == datatype {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "tensor `{}` is {}, the guest reads it as {}",
            self.name,
            self.datatype.name(),
            datatype.name()
        )))
    }
}

/// A number type whose bytes may be read as they lie in memory.
pub(crate) trait Plain: Copy {}

impl Plain for f32 {}
impl Plain for i32 {}
impl Plain for i64 {}

/// The bytes of numbers, as they lie in memory: Wasm is little-endian.
pub(crate) fn le_bytes<T: Plain>(values: &[T]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "the bytes are sent as they lie in memory") };
    // SAFETY: `Plain` types have no padding, and any byte may be read as u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Reads little-endian floats without a copy where the bytes are aligned: Wasm is
/// little-endian, and its allocator aligns to eight.
pub(crate) fn fp32_from_le(data: &[u8]) -> Cow<'_, [f32]> {
    let (chunks, _) = data.as_chunks::<4>();
    // SAFETY: every bit pattern is an f32, and `le_bytes` has the order of bytes.
    let (head, floats, _) = unsafe { data.align_to::<f32>() };
    if head.is_empty() {
        return Cow::Borrowed(floats);
    }
    Cow::Owned(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
}

impl Request {
    /// The input of that name.
    ///
    /// # Errors
    /// The contract has no such input (the host checks requests against it).
    pub fn input(&self, name: &str) -> Result<&Tensor, Error> {
        self.inputs
            .iter()
            .find(|tensor| tensor.name == name)
            .ok_or_else(|| Error::Internal(format!("the contract has no input `{name}`")))
    }

    /// Whether the client wants that output; one that names none wants all.
    pub fn wants(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|name| name == output)
    }

    /// A parameter that is a positive integer, or `default` where it is not given.
    ///
    /// # Errors
    /// The parameter is there and is not a positive integer.
    pub fn positive(&self, name: &str, default: usize) -> Result<usize, Error> {
        match self.parameter(name) {
            None => Ok(default),
            Some(Parameter::Integer(value)) if *value > 0 => {
                Ok(usize::try_from(*value).unwrap_or(usize::MAX))
            }
            Some(other) => Err(refused(name, "a positive integer", other)),
        }
    }

    /// A parameter that is true or false, or `default` where it is not given.
    ///
    /// # Errors
    /// The parameter is there and is not a boolean.
    pub fn boolean(&self, name: &str, default: bool) -> Result<bool, Error> {
        match self.parameter(name) {
            None => Ok(default),
            Some(Parameter::Boolean(value)) => Ok(*value),
            Some(other) => Err(refused(name, "true or false", other)),
        }
    }

    fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|(given, _)| given == name).map(|(_, value)| value)
    }
}

fn refused(name: &str, expected: &str, parameter: &Parameter) -> Error {
    let came = match parameter {
        Parameter::Boolean(value) => value.to_string(),
        Parameter::Integer(value) => value.to_string(),
        Parameter::Number(value) => value.to_string(),
        Parameter::Text(value) => format!("{value:?}"),
    };
    Error::InvalidInput(format!("parameter `{name}`: expected {expected}, got {came}"))
}

impl<const N: usize> From<[Tensor; N]> for Response {
    fn from(outputs: [Tensor; N]) -> Self {
        Self { outputs: outputs.into(), parameters: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_went_in() {
        let tensor = Tensor::bytes("words", &["", "tiger", "cat"]);
        assert_eq!(tensor.shape, [3]);
        assert_eq!(tensor.to_bytes().unwrap(), [&b""[..], b"tiger", b"cat"]);
    }

    #[test]
    fn a_bytes_element_longer_than_the_data_is_refused() {
        let mut tensor = Tensor::bytes("words", &["tiger"]);
        tensor.data.pop();
        assert!(matches!(tensor.to_bytes(), Err(Error::InvalidInput(_))));
    }

    #[test]
    fn floats_are_read_at_any_alignment() {
        let mut data = vec![0u8];
        data.extend([1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));
        assert_eq!(*fp32_from_le(&data[1..]), [1.5, -2.0]);
    }
    #[test]
    fn a_parameter_of_another_type_is_refused() {
        let parameters = vec![
            ("on".to_owned(), Parameter::Boolean(true)),
            ("many".to_owned(), Parameter::Text("true".to_owned())),
        ];
        let request = Request { inputs: Vec::new(), outputs: Vec::new(), parameters };
        assert!(request.boolean("on", false).unwrap());
        assert!(!request.boolean("off", false).unwrap());
        let Err(Error::InvalidInput(text)) = request.boolean("many", false) else { panic!() };
        assert_eq!(text, "parameter `many`: expected true or false, got \"true\"");
    }
}
