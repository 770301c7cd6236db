//! The seam to `wasmtime-wasi-nn`: a registry of one bundle's graphs for one request, and an
//! execution context that checks a guest's tensors before the engine sees them.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tract_onnx::prelude::{DatumType, IntoTValue, TValue, TVec, Tensor as TractTensor};
use wasmtime_wasi_nn::backend::{
    BackendError, BackendExecutionContext, BackendGraph, Id, NamedTensor,
};
use wasmtime_wasi_nn::wit::{TensorType, WasiNnCtx};
use wasmtime_wasi_nn::{ExecutionContext, Graph as WasiGraph, GraphRegistry, Tensor};

use super::{Failure, Graph, Graphs, Run};
use crate::tensor::{Datatype, TensorSpec};

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
        let mut ordered = TVec::new();
        for spec in &contract.inputs {
            let mut named = inputs.iter().filter(|input| input.name == spec.name);
            let (Some(input), None) = (named.next(), named.next()) else {
                let came: Vec<_> = inputs.iter().map(|input| &input.name).collect();
                return Err(Failure::Refused(format!(
                    "graph input `{}` is wanted once, got {came:?}",
                    spec.name
                )));
            };
            ordered.push(to_tract(spec, &input.tensor).map_err(Failure::Refused)?);
        }
        if let Some(extra) =
            inputs.iter().find(|input| contract.inputs.iter().all(|spec| spec.name != input.name))
        {
            return Err(Failure::Refused(format!("the graph has no input `{}`", extra.name)));
        }
        let outputs = self.graph.run(ordered, &self.run)?;
        let named = contract.outputs.iter().zip(&outputs).map(|(spec, value)| {
            Ok(NamedTensor { name: spec.name.clone(), tensor: from_tract(spec, value)? })
        });
        named.collect::<Result<_, _>>().map_err(Failure::Failed)
    }
}

/// Copies a guest's tensor for the engine, once its dims × type are seen to be its length.
fn to_tract(spec: &TensorSpec, tensor: &Tensor) -> Result<TValue, String> {
    let name = &spec.name;
    if datatype_of(tensor.ty) != spec.datatype {
        return Err(format!(
            "graph input `{name}` is {}, got {}",
            spec.datatype,
            datatype_of(tensor.ty)
        ));
    }
    let Some((datum, size)) = datum_of(tensor.ty) else {
        return Err(format!("graph input `{name}`: the engine has no {}", datatype_of(tensor.ty)));
    };
    let dims: TVec<usize> = tensor.dimensions.iter().map(|&size| size as usize).collect();
    let expected = dims.iter().try_fold(size, |bytes: usize, &dim| bytes.checked_mul(dim));
    if expected != Some(tensor.data.len()) {
        return Err(format!(
            "graph input `{name}`: {dims:?} of {} does not make {} bytes",
            spec.datatype,
            tensor.data.len()
        ));
    }
    // wasi-nn writes a scalar as [1].
    let scalar = spec.shape.is_empty() && dims[..] == [1];
    let shape: &[usize] = if scalar { &[] } else { &dims };
    let sizes_fit = spec.shape.len() == shape.len()
        && spec.shape.iter().zip(shape).all(|(&want, &got)| want < 0 || want as usize == got);
    if !sizes_fit {
        return Err(format!("graph input `{name}` has shape {:?}, got {dims:?}", spec.shape));
    }
    // SAFETY: `data` is exactly shape × size bytes, and every bit pattern is a value of these
    // number types.
    let copied = unsafe { TractTensor::from_raw_dt(datum, shape, &tensor.data) };
    copied.map(IntoTValue::into_tvalue).map_err(|error| format!("graph input `{name}`: {error}"))
}

fn from_tract(spec: &TensorSpec, value: &TValue) -> Result<Tensor, String> {
    let cannot = |why: String| format!("graph output `{}`: {why}", spec.name);
    let cast;
    let value: &TractTensor = if value.datum_type() == DatumType::TDim {
        cast = value.cast_to_dt(DatumType::I64).map_err(|error| cannot(error.to_string()))?;
        &cast
    } else {
        value
    };
    let ty = match value.datum_type().unquantized() {
        DatumType::F16 => TensorType::Fp16,
        DatumType::F32 => TensorType::Fp32,
        DatumType::F64 => TensorType::Fp64,
        DatumType::U8 => TensorType::U8,
        DatumType::I32 => TensorType::I32,
        DatumType::I64 => TensorType::I64,
        other => return Err(cannot(format!("wasi-nn cannot carry {other:?}"))),
    };
    let dimensions: Result<Vec<u32>, _> =
        value.shape().iter().map(|&size| u32::try_from(size)).collect();
    let dimensions = dimensions.map_err(|error| cannot(error.to_string()))?;
    let plain = value.try_as_plain_ram().map_err(|error| cannot(error.to_string()))?;
    Ok(Tensor { dimensions, ty, data: plain.as_bytes().to_vec() })
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

fn datum_of(ty: TensorType) -> Option<(DatumType, usize)> {
    Some(match ty {
        TensorType::Fp16 => (DatumType::F16, 2),
        TensorType::Fp32 => (DatumType::F32, 4),
        TensorType::Fp64 => (DatumType::F64, 8),
        TensorType::U8 => (DatumType::U8, 1),
        TensorType::I32 => (DatumType::I32, 4),
        TensorType::I64 => (DatumType::I64, 8),
        TensorType::Bf16 => return None,
    })
}
