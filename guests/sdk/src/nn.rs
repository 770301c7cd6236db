//! wasi-nn by name: load one of the bundle's graphs and run it.

use std::borrow::Cow;

use crate::Error;
use crate::bindings::wasi::nn;
use crate::tensor::{fp32_from_le, le_bytes};

pub use nn::tensor::TensorType;

/// A tensor on its way into or out of a graph.
pub struct Value(nn::tensor::Tensor);

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

    /// The type of its elements.
    pub fn datatype(&self) -> TensorType {
        self.0.ty()
    }

    /// Its elements as little-endian, row-major bytes.
    pub fn data(&self) -> Vec<u8> {
        self.0.data()
    }

    /// Its elements as floats.
    ///
    /// # Errors
    /// The tensor is of another datatype.
    pub fn to_fp32(&self) -> Result<Vec<f32>, Error> {
        if self.datatype() != TensorType::Fp32 {
            return Err(Error::Internal(format!(
                "graph output is {:?}, expected FP32",
                self.datatype()
            )));
        }
        let data = self.data();
        Ok(match fp32_from_le(&data) {
            Cow::Borrowed(floats) => floats.to_vec(),
            Cow::Owned(floats) => floats,
        })
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
