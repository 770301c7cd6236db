//! Tensors as engines and every room of the server know them: typed, shaped, little-endian
//! bytes. No wire form, no engine's and no Wasm type may appear here.

use std::borrow::Cow;
use std::fmt;

/// The element types of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Byte strings; in [`Tensor::data`] one `{u32 little-endian length, bytes}` an element.
    Bytes,
}

impl Datatype {
    const NAMES: [(Datatype, &str); 14] = [
        (Datatype::Bool, "BOOL"),
        (Datatype::Uint8, "UINT8"),
        (Datatype::Uint16, "UINT16"),
        (Datatype::Uint32, "UINT32"),
        (Datatype::Uint64, "UINT64"),
        (Datatype::Int8, "INT8"),
        (Datatype::Int16, "INT16"),
        (Datatype::Int32, "INT32"),
        (Datatype::Int64, "INT64"),
        (Datatype::Fp16, "FP16"),
        (Datatype::Bf16, "BF16"),
        (Datatype::Fp32, "FP32"),
        (Datatype::Fp64, "FP64"),
        (Datatype::Bytes, "BYTES"),
    ];

    /// The protocol's name, as `FP32`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The datatype of that name, if the protocol has it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(datatype, _)| *datatype)
    }

    /// Bytes an element takes; `None` for [`Datatype::Bytes`], whose elements vary.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => 1,
            Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 | Datatype::Bf16 => 2,
            Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => 4,
            Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => 8,
            Datatype::Bytes => return None,
        })
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A named tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<u64>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Checks that `data` is as long as shape × datatype say.
    ///
    /// # Errors
    /// A text that names what was expected and what came.
    pub fn check_length(&self) -> Result<(), String> {
        // Signed in gRPC and in a contract.
        if let Some(dimension) = self.shape.iter().position(|&size| i64::try_from(size).is_err()) {
            let size = self.shape[dimension];
            return Err(format!("shape[{dimension}]: expected less than 2^63, got {size}"));
        }
        let Some(elements) = element_count(&self.shape) else {
            return Err(format!("shape {:?} has more elements than can be counted", self.shape));
        };
        let Some(size) = self.datatype.size() else {
            let came = count_bytes_elements(&self.data)?;
            return match came == elements {
                true => Ok(()),
                false => Err(format!(
                    "shape {:?} asks for {elements} BYTES elements, got {came}",
                    self.shape
                )),
            };
        };
        let expected = elements.checked_mul(size as u64);
        if expected == Some(self.data.len() as u64) {
            return Ok(());
        }
        let expected = expected.map_or("more than 2^64".to_owned(), |bytes| bytes.to_string());
        Err(format!(
            "shape {:?} of {} asks for {expected} bytes, got {}",
            self.shape,
            self.datatype,
            self.data.len()
        ))
    }
}

/// A tensor on its way into or out of a graph, row-major, without a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Value<'a> {
    pub datatype: Datatype,
    pub shape: Vec<usize>,
    /// As [`Tensor::data`].
    pub data: Cow<'a, [u8]>,
}

impl Value<'_> {
    /// The same with data of its own.
    pub fn to_owned_value(&self) -> Value<'static> {
        let data = Cow::Owned(self.data.clone().into_owned());
        Value { datatype: self.datatype, shape: self.shape.clone(), data }
    }

    /// How many elements the shape asks for; `None` where they cannot be counted.
    pub fn elements(&self) -> Option<usize> {
        match self.shape.contains(&0) {
            true => Some(0),
            false => self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size)),
        }
    }

    /// Checks that `data` is as long as shape × datatype say.
    ///
    /// # Errors
    /// A text that names what was expected and what came.
    pub fn check_length(&self) -> Result<(), String> {
        let wrong = || {
            let (shape, datatype, length) = (&self.shape, self.datatype, self.data.len());
            format!("{shape:?} of {datatype} does not make {length} bytes")
        };
        let elements = self.elements().ok_or_else(wrong)?;
        let fits = match self.datatype.size() {
            Some(size) => elements.checked_mul(size) == Some(self.data.len()),
            None => count_bytes_elements(&self.data)? == elements as u64,
        };
        if fits { Ok(()) } else { Err(wrong()) }
    }

    /// Checks that each element is one that graphs know: a BOOL is 0 or 1, and a string UTF-8.
    ///
    /// # Errors
    /// A text that names the first that is not.
    pub fn check_elements(&self) -> Result<(), String> {
        match self.datatype {
            Datatype::Bool => match self.data.iter().position(|&byte| byte > 1) {
                Some(index) => {
                    let came = self.data[index];
                    Err(format!("BOOL element {index} is {came}, expected 0 or 1"))
                }
                None => Ok(()),
            },
            Datatype::Bytes => {
                let mut elements = bytes_elements(&self.data).enumerate();
                elements.try_for_each(|(index, element)| match str::from_utf8(element?) {
                    Ok(_) => Ok(()),
                    Err(_) => Err(format!("BYTES element {index} is not UTF-8, as strings are")),
                })
            }
            _ => Ok(()),
        }
    }
}

/// The product of the dimensions, `None` where it does not fit.
pub fn element_count(shape: &[u64]) -> Option<u64> {
    match shape.contains(&0) {
        true => Some(0),
        false => shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size)),
    }
}

/// The elements of a BYTES tensor's data.
///
/// # Errors
/// A length runs past the end; the text says which element.
pub fn bytes_elements(data: &[u8]) -> impl Iterator<Item = Result<&[u8], String>> {
    let mut rest = data;
    let mut index = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = rest
            .split_first_chunk::<4>()
            .and_then(|(length, tail)| tail.split_at_checked(u32::from_le_bytes(*length) as usize));
        let Some((element, tail)) = split else {
            let left = rest.len();
            rest = &[];
            return Some(Err(format!(
                "BYTES element {index} is longer than the {left} bytes left"
            )));
        };
        rest = tail;
        index += 1;
        Some(Ok(element))
    })
}

fn count_bytes_elements(data: &[u8]) -> Result<u64, String> {
    bytes_elements(data).try_fold(0, |count, element| element.map(|_| count + 1))
}

/// Appends one BYTES element.
///
/// # Errors
/// The element is 4 GiB or longer.
pub fn push_bytes_element(data: &mut Vec<u8>, element: &[u8]) -> Result<(), String> {
    let length = u32::try_from(element.len()).map_err(|_| {
        format!("a BYTES element has {} bytes, expected fewer than 4 GiB", element.len())
    })?;
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
    Ok(())
}

/// What a tensor of that name looks like; -1 in `shape` is any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// Whether a tensor of `shape` is what this asks for.
    pub fn accepts(&self, shape: &[u64]) -> bool {
        self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(|(&want, &got)| want < 0 || want as u64 == got)
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {} {:?}", self.name, self.datatype, self.shape)
    }
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

/// A request's or a response's parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl Parameter {
    /// What it holds beside its own size.
    pub fn bytes(&self) -> usize {
        match self {
            Parameter::Text(text) => text.len(),
            Parameter::Boolean(_) | Parameter::Integer(_) | Parameter::Number(_) => 0,
        }
    }

    /// A whole number of 0 or more, however it is written: JSON's 2.0 is 2.
    pub fn as_count(&self) -> Option<u64> {
        match self {
            Parameter::Integer(value) => u64::try_from(*value).ok(),
            // Below 2^53 a double is exact.
            Parameter::Number(value) if value.fract() == 0.0 && (0.0..9e15).contains(value) => {
                Some(*value as u64)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Parameter::Boolean(value) => value.fmt(f),
            Parameter::Integer(value) => value.fmt(f),
            Parameter::Number(value) => value.fmt(f),
            Parameter::Text(value) => write!(f, "{value:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: Datatype, shape: &[u64], data: &[u8]) -> Tensor {
        Tensor { name: "x".into(), datatype, shape: shape.into(), data: data.into() }
    }

    #[test]
    fn every_datatype_is_found_by_its_name() {
        for (datatype, name) in Datatype::NAMES {
            assert_eq!(datatype.name(), name);
            assert_eq!(Datatype::parse(name), Some(datatype));
        }
    }

    #[test]
    fn length_must_be_what_shape_and_datatype_say() {
        assert_eq!(tensor(Datatype::Fp32, &[2], &[0; 8]).check_length(), Ok(()));
        assert_eq!(tensor(Datatype::Fp32, &[], &[0; 4]).check_length(), Ok(()));
        assert!(tensor(Datatype::Fp32, &[2], &[0; 7]).check_length().is_err());
        assert!(tensor(Datatype::Fp32, &[1 << 63, 4], &[]).check_length().is_err());
        assert!(tensor(Datatype::Fp64, &[1 << 62], &[]).check_length().is_err());
        assert_eq!(tensor(Datatype::Fp64, &[1 << 62, 1 << 62, 0], &[]).check_length(), Ok(()));
        assert!(tensor(Datatype::Fp64, &[0, 1 << 63], &[]).check_length().is_err());
    }

    #[test]
    fn bytes_elements_must_fill_the_data() {
        let mut data = Vec::new();
        push_bytes_element(&mut data, b"cat").unwrap();
        push_bytes_element(&mut data, b"").unwrap();
        assert_eq!(tensor(Datatype::Bytes, &[2], &data).check_length(), Ok(()));
        assert!(tensor(Datatype::Bytes, &[1], &data).check_length().is_err());
        data.pop();
        assert!(tensor(Datatype::Bytes, &[2], &data).check_length().is_err());
    }
}
