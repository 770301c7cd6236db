//! wasi-nn by name: load one of the bundle's graphs and run it.
//!
//! wasi-nn has seven element types. What a graph takes or gives of another type goes in one of
//! those, of the same size, its bits unchanged: [`Datatype::carrier`] says in which.

use std::borrow::Cow;

use crate::bindings::wasi::nn;
use crate::tensor::{fp32_from_le, le_bytes};
use crate::{Datatype, Error, Tensor};

pub use nn::tensor::TensorType;

impl Datatype {
    /// The type that a graph's tensors of this datatype have in wasi-nn: the same where it is
    /// there, else one of the same size, whose bits are the element's. BYTES go as U8: the
    /// dimensions count the strings, and the data is as in [`Tensor`].
    pub fn carrier(self) -> TensorType {
        match self {
            Datatype::Fp16 | Datatype::Int16 | Datatype::Uint16 => TensorType::Fp16,
            Datatype::Bf16 => TensorType::Bf16,
            Datatype::Fp32 => TensorType::Fp32,
            Datatype::Fp64 => TensorType::Fp64,
            Datatype::Uint8 | Datatype::Int8 | Datatype::Bool | Datatype::Bytes => TensorType::U8,
            Datatype::Int32 | Datatype::Uint32 => TensorType::I32,
            Datatype::Int64 | Datatype::Uint64 => TensorType::I64,
        }
    }
}

/// A tensor on its way into or out of a graph.
pub struct Value(nn::tensor::Tensor);

impl TryFrom<&Tensor> for Value {
    type Error = Error;

    /// A tensor as it is, for a graph's input of its datatype. Fails where a dimension is longer
    /// than wasi-nn can say.
    fn try_from(tensor: &Tensor) -> Result<Self, Error> {
        let shape: Result<Vec<u32>, _> = tensor.shape.iter().map(|&size| size.try_into()).collect();
        let shape = shape.map_err(|_| {
            Error::InvalidInput(format!("input `{}`: a dimension is over 2^32 - 1", tensor.name))
        })?;
        Ok(Self::new(&shape, tensor.datatype.carrier(), &tensor.data))
    }
}

impl Value {
    /// A tensor of raw little-endian, row-major `data`.
    pub fn new(shape: &[u32], datatype: TensorType, data: &[u8]) -> Self {
        Self(nn::tensor::Tensor::new(shape, datatype, data))
    }

    /// A float tensor.
    pub fn fp32(shape: &[u32], values: &[f32]) -> Self {
        Self::new(shape, TensorType::Fp32, le_bytes(values))
    }

    /// A tensor of 64-bit integers.
    pub fn int64(shape: &[u32], values: &[i64]) -> Self {
        Self::new(shape, TensorType::I64, le_bytes(values))
    }

    /// The sizes of its dimensions.
    pub fn shape(&self) -> Vec<u32> {
        self.0.dimensions()
    }

    /// The type of its elements in wasi-nn.
    pub fn datatype(&self) -> TensorType {
        self.0.ty()
    }

    /// Its elements as little-endian, row-major bytes.
    pub fn data(&self) -> Vec<u8> {
        self.0.data()
    }

    /// The tensor that it is, where `datatype` is its graph's output's.
    ///
    /// # Errors
    /// It is not what carries that datatype.
    pub fn to_tensor(&self, name: &str, datatype: Datatype) -> Result<Tensor, Error> {
        self.expect(datatype.carrier())?;
        let shape = self.shape().into_iter().map(u64::from).collect();
        Ok(Tensor { name: name.to_owned(), datatype, shape, data: self.data() })
    }

    /// Its elements as floats.
    ///
    /// # Errors
    /// The tensor is of another datatype.
    pub fn to_fp32(&self) -> Result<Vec<f32>, Error> {
        self.expect(TensorType::Fp32)?;
        let data = self.data();
        Ok(match fp32_from_le(&data) {
            Cow::Borrowed(floats) => floats.to_vec(),
            Cow::Owned(floats) => floats,
        })
    }

    fn expect(&self, datatype: TensorType) -> Result<(), Error> {
        match self.datatype() {
            came if came == datatype => Ok(()),
            came => {
                Err(Error::Internal(format!("graph output is {came:?}, expected {datatype:?}")))
            }
        }
    }
}

/// One of the bundle's graphs, ready to run.
pub struct Graph(nn::inference::GraphExecutionContext);

impl Graph {
    /// Takes the graph that the manifest lists under that name.
    ///
    /// # Errors
    /// The bundle has no such graph.
    pub fn load(name: &str) -> Result<Self, Error> {
        let context =
            nn::graph::load_by_name(name).and_then(|graph| graph.init_execution_context());
        context.map(Self).map_err(|error| internal(&format!("graph `{name}`"), &error))
    }

    /// Runs the graph; the values come back in the order of its outputs.
    ///
    /// # Errors
    /// The engine refused the tensors or failed; the host's log has the cause.
    pub fn compute<'a>(
        &self,
        inputs: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Result<Vec<(String, Value)>, Error> {
        let inputs = inputs.into_iter().map(|(name, value)| (name.to_owned(), value.0)).collect();
        let outputs = self.0.compute(inputs).map_err(|error| internal("compute", &error))?;
        Ok(outputs.into_iter().map(|(name, tensor)| (name, Value(tensor))).collect())
    }
}

fn internal(what: &str, error: &nn::errors::Error) -> Error {
    Error::Internal(format!("{what}: {:?}: {}", error.code(), error.data()))
}
