//! The seam to `wasmtime-wasi-nn`: a registry of one bundle's graphs for one request, and an
//! execution context that checks a guest's tensors before the engine sees them.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use wasmtime_wasi_nn::backend::{
    BackendError, BackendExecutionContext, BackendGraph, Id, NamedTensor,
};
use wasmtime_wasi_nn::wit::{TensorType, WasiNnCtx};
use wasmtime_wasi_nn::{ExecutionContext, Graph as WasiGraph, GraphRegistry, Tensor};
use wisp_engine::{Failure, Graph};

use super::{Graphs, Run};
use crate::tensor::{Datatype, Value};

impl Graphs {
    /// What one sandbox sees of wasi-nn: these graphs by name, under `run`, and no backend
    /// that would load a graph from bytes.
    pub fn context(self: &Arc<Self>, run: &Arc<Run>) -> WasiNnCtx {
        let registry = Registry { graphs: self.clone(), run: run.clone(), seen: OnceLock::new() };
        WasiNnCtx::new([], wasmtime_wasi_nn::Registry::from(registry))
    }
}

struct Registry {
    graphs: Arc<Graphs>,
    run: Arc<Run>,
    /// Filled at the first look-up: a guest that fails early pays nothing.
    seen: OnceLock<Vec<WasiGraph>>,
}

impl GraphRegistry for Registry {
    fn get(&self, name: &str) -> Option<&WasiGraph> {
        let index = self.graphs.0.iter().position(|(known, _)| known == name)?;
        let seen = self.seen.get_or_init(|| {
            let bind = |(_, graph): &(_, Arc<Graph>)| {
                let bound = BoundGraph { graph: graph.clone(), run: self.run.clone() };
                WasiGraph::from(Box::new(bound) as Box<dyn BackendGraph>)
            };
            self.graphs.0.iter().map(bind).collect()
        });
        seen.get(index)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut WasiGraph> {
        self.get(name)?;
        let index = self.graphs.0.iter().position(|(known, _)| known == name)?;
        self.seen.get_mut()?.get_mut(index)
    }
}

/// A shared graph under one request's deadline.
#[derive(Clone)]
struct BoundGraph {
    graph: Arc<Graph>,
    run: Arc<Run>,
}

impl BackendGraph for BoundGraph {
    fn init_execution_context(&self) -> Result<ExecutionContext, BackendError> {
        Ok(ExecutionContext::from(Box::new(self.clone()) as Box<dyn BackendExecutionContext>))
    }
}

impl BackendExecutionContext for BoundGraph {
    fn set_input(&mut self, _: Id, _: &Tensor) -> Result<(), BackendError> {
        Err(BackendError::UnsupportedTensorType("set-input is not part of this wasi-nn".into()))
    }

    fn get_output(&mut self, _: Id) -> Result<Tensor, BackendError> {
        Err(BackendError::UnsupportedTensorType("get-output is not part of this wasi-nn".into()))
    }

    fn compute(
        &mut self,
        inputs: Option<Vec<NamedTensor>>,
    ) -> Result<Option<Vec<NamedTensor>>, BackendError> {
        let started = Instant::now();
        let result = self.run_named(&inputs.unwrap_or_default());
        self.run.record(started, result.as_ref().err());
        result.map(Some).map_err(|failure| {
            BackendError::BackendAccess(wasmtime::Error::msg(format!("{failure:?}")))
        })
    }
}

impl BoundGraph {
    fn run_named(&self, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>, Failure> {
        let contract = self.graph.contract();
        let mut ordered = Vec::with_capacity(contract.inputs.len());
        for spec in &contract.inputs {
            let mut named = inputs.iter().filter(|input| input.name == spec.name);
            let (Some(input), None) = (named.next(), named.next()) else {
                let came: Vec<_> = inputs.iter().map(|input| &input.name).collect();
                return Err(Failure::Refused(format!(
                    "graph input `{}` is wanted once, got {came:?}",
                    spec.name
                )));
            };
            ordered.push(to_value(&input.tensor));
        }
        if let Some(extra) =
            inputs.iter().find(|input| contract.inputs.iter().all(|spec| spec.name != input.name))
        {
            return Err(Failure::Refused(format!("the graph has no input `{}`", extra.name)));
        }
        let outputs = self.graph.run(&mut ordered, &|| self.run.is_over())?;
        let named = contract.outputs.iter().zip(outputs).map(|(spec, value)| {
            let tensor = to_wasi(value).map_err(|reason| {
                Failure::Failed(format!("graph output `{}`: {reason}", spec.name))
            })?;
            Ok(NamedTensor { name: spec.name.clone(), tensor })
        });
        named.collect()
    }
}

fn to_value(tensor: &Tensor) -> Value<'_> {
    Value {
        datatype: datatype_of(tensor.ty),
        shape: tensor.dimensions.iter().map(|&size| size as usize).collect(),
        data: Cow::Borrowed(&tensor.data),
    }
}

fn to_wasi(value: Value<'_>) -> Result<Tensor, String> {
    let ty = match value.datatype {
        Datatype::Fp16 => TensorType::Fp16,
        Datatype::Bf16 => TensorType::Bf16,
        Datatype::Fp32 => TensorType::Fp32,
        Datatype::Fp64 => TensorType::Fp64,
        Datatype::Uint8 => TensorType::U8,
        Datatype::Int32 => TensorType::I32,
        Datatype::Int64 => TensorType::I64,
        other => return Err(format!("wasi-nn cannot carry {other}")),
    };
    let dimensions: Result<Vec<u32>, _> =
        value.shape.iter().map(|&size| u32::try_from(size)).collect();
    let dimensions = dimensions.map_err(|error| error.to_string())?;
    Ok(Tensor { dimensions, ty, data: value.data.into_owned() })
}

fn datatype_of(ty: TensorType) -> Datatype {
    match ty {
        TensorType::Fp16 => Datatype::Fp16,
        TensorType::Bf16 => Datatype::Bf16,
        TensorType::Fp32 => Datatype::Fp32,
        TensorType::Fp64 => Datatype::Fp64,
        TensorType::U8 => Datatype::Uint8,
        TensorType::I32 => Datatype::Int32,
        TensorType::I64 => Datatype::Int64,
    }
}
