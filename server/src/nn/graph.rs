//! One ONNX graph: what it takes and gives, and its optimised plans.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::{SimpleState, eval};

use super::plans::{Plan, Plans};
use super::{Failure, Run};
use crate::tensor::{Contract, Datatype, TensorSpec};

/// Why a file is not a graph that can be served; for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GraphError(String);

/// A graph, parsed and optimised once, run by any number of sandboxes at a time.
#[derive(Debug)]
pub struct Graph {
    contract: Contract,
    plans: Plans,
}

impl Graph {
    /// Parses and optimises the bytes of an ONNX file. Weights in other files are refused:
    /// a bundle's graphs are whole.
    ///
    /// # Errors
    /// Not ONNX, no inputs or outputs, an operator or type that the engine lacks.
    pub fn load(onnx: &[u8]) -> Result<Self, GraphError> {
        let parsed = catch_unwind(AssertUnwindSafe(|| Self::parse(onnx)));
        parsed.unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            Err(GraphError(format!("the engine panicked while it read the graph: {text}")))
        })
    }

    fn parse(mut onnx: &[u8]) -> Result<Self, GraphError> {
        // The types that intermediate tensors claim to have are often wrong about symbolic
        // sizes ("impossible to unify Sym(batch) with Val(1)"); tract infers them anyway.
        let framework = tract_onnx::onnx().with_ignore_value_info(true);
        let proto = framework
            .proto_model_for_read(&mut onnx)
            .map_err(|error| GraphError(format!("not an ONNX file: {}", chain(&error))))?;
        let graph = proto
            .graph
            .as_ref()
            .ok_or_else(|| GraphError("not an ONNX file: it holds no graph".into()))?;
        let mut contract = read_contract(graph)?;
        let model = framework
            .model_for_proto_model(&proto)
            .map_err(|error| GraphError(format!("cannot be read: {}", chain(&error))))?;
        let (plans, outputs) = Plans::new(model).map_err(GraphError)?;
        fill_in(&mut contract.outputs, &outputs)?;
        Ok(Self { contract, plans })
    }

    /// Its inputs and outputs, named, in the file's order; -1 where a size is free.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Runs the graph on tensors in the order of its inputs, node by node, until `run` is over.
    ///
    /// # Errors
    /// The shapes do not fit the graph, the engine failed or panicked, or `run` is over.
    pub(super) fn run(&self, inputs: TVec<TValue>, run: &Run) -> Result<TVec<TValue>, Failure> {
        let guarded = catch_unwind(AssertUnwindSafe(|| {
            let plan = self.plans.get(&inputs).map_err(Failure::Refused)?;
            run_plan(&plan, inputs, run)
        }));
        clear_upper_registers();
        guarded.unwrap_or_else(|panic| {
            Err(Failure::Failed(format!("the engine panicked: {}", panic_text(&*panic))))
        })
    }
}

fn run_plan(plan: &Plan, inputs: TVec<TValue>, run: &Run) -> Result<TVec<TValue>, Failure> {
    let failed = |error: TractError| Failure::Failed(chain(&error));
    let mut stopped = false;
    let mut state = SimpleState::new(plan).map_err(failed)?;
    let outputs = state.run_plan_with_eval(inputs, |context, op_state, node, inputs| {
        if run.is_over() {
            stopped = true;
            return Err(TractError::msg("stopped"));
        }
        eval(context, op_state, node, inputs)
    });
    match outputs {
        Ok(outputs) => Ok(outputs),
        Err(_) if stopped => Err(Failure::Stopped),
        Err(error) => Err(failed(error)),
    }
}

/// tract's AVX kernels leave the upper halves of the vector registers in use. Every SSE
/// instruction after that has to merge with them, in the next operator as in the next guest:
/// a JPEG that decodes in 4 ms then takes 110.
fn clear_upper_registers() {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: AVX is there. The instruction clears what no compiled code of ours keeps
        // across a call: the ABI has no callee-saved vector registers.
        unsafe { std::arch::x86_64::_mm256_zeroupper() };
    }
}

/// The names, datatypes and shapes that the file declares. Initializers may be listed among
/// the inputs (ONNX before IR 4); they are not inputs to a client.
fn read_contract(graph: &pb::GraphProto) -> Result<Contract, GraphError> {
    let is_initializer = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs = graph.input.iter().filter(|input| !is_initializer(&input.name));
    let contract = Contract {
        inputs: inputs.map(read_spec).collect::<Result<_, _>>()?,
        outputs: graph.output.iter().map(read_spec).collect::<Result<_, _>>()?,
    };
    if contract.outputs.is_empty() {
        return Err(GraphError("the graph has no outputs".into()));
    }
    Ok(contract)
}

fn read_spec(value: &pb::ValueInfoProto) -> Result<TensorSpec, GraphError> {
    let name = &value.name;
    let Some(pb::type_proto::Value::TensorType(tensor)) =
        value.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Err(GraphError(format!("`{name}` is not a tensor, nothing else is served")));
    };
    let datatype = from_onnx(tensor.elem_type).ok_or_else(|| {
        GraphError(format!(
            "`{name}` has ONNX element type {}, which the protocol lacks",
            tensor.elem_type
        ))
    })?;
    let dims = tensor.shape.as_ref().map(|shape| &shape.dim[..]).unwrap_or_default();
    let shape = dims.iter().map(|dim| match dim.value {
        Some(pb::tensor_shape_proto::dimension::Value::DimValue(size)) if size >= 0 => size,
        _ => -1,
    });
    Ok(TensorSpec { name: name.clone(), datatype, shape: shape.collect() })
}

/// Exporters often leave an output's shape out, or free where the graph makes it fixed: what
/// the engine inferred is taken where it says more.
fn fill_in(outputs: &mut [TensorSpec], inferred: &[TypedFact]) -> Result<(), GraphError> {
    for (spec, fact) in outputs.iter_mut().zip(inferred) {
        let found = fact.shape.iter().map(|dim| dim.as_i64().unwrap_or(-1));
        if spec.shape.len() != fact.rank() {
            spec.shape = found.collect();
        } else {
            for (size, found) in spec.shape.iter_mut().zip(found) {
                if *size >= 0 && found >= 0 && *size != found {
                    return Err(GraphError(format!(
                        "output `{}` is declared with a size of {size} that comes out as {found}",
                        spec.name
                    )));
                }
                *size = if *size < 0 { found } else { *size };
            }
        }
        if from_tract(fact.datum_type) != Some(spec.datatype) {
            return Err(GraphError(format!(
                "output `{}` is declared {} and comes out as {:?}",
                spec.name, spec.datatype, fact.datum_type
            )));
        }
    }
    Ok(())
}

/// ONNX's `TensorProto.DataType` numbers, from its specification (onnx.proto).
fn from_onnx(element_type: i32) -> Option<Datatype> {
    Some(match element_type {
        1 => Datatype::Fp32,
        2 => Datatype::Uint8,
        3 => Datatype::Int8,
        4 => Datatype::Uint16,
        5 => Datatype::Int16,
        6 => Datatype::Int32,
        7 => Datatype::Int64,
        8 => Datatype::Bytes,
        9 => Datatype::Bool,
        10 => Datatype::Fp16,
        11 => Datatype::Fp64,
        12 => Datatype::Uint32,
        13 => Datatype::Uint64,
        16 => Datatype::Bf16,
        _ => return None,
    })
}

fn from_tract(datum: DatumType) -> Option<Datatype> {
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
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        DatumType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// What a panic said, on one line.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    text.lines().next().unwrap_or_default().to_owned()
}

/// An error and its causes on one line.
pub(super) fn chain(error: &TractError) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
