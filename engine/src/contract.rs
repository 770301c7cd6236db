//! What a graph takes and gives: what its file declares, and what an engine inferred.

use tract_onnx::pb;

use crate::narrow::Narrow;
use crate::tensor::{Contract, Datatype, TensorSpec};
use crate::{EngineKind, LoadError};

/// What an engine knows of an output before it runs; -1 where a size is free.
#[derive(Debug)]
pub(crate) struct Inferred {
    pub(crate) datatype: Option<Datatype>,
    pub(crate) shape: Vec<i64>,
}

/// The names, datatypes and shapes that the file declares. Initializers may be listed among
/// the inputs (ONNX before IR 4); they are not inputs to a client.
pub(crate) fn read(graph: &pb::GraphProto) -> Result<Contract, LoadError> {
    let is_initializer = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs = graph.input.iter().filter(|input| !is_initializer(&input.name));
    let contract = Contract {
        inputs: inputs.map(|input| read_spec("input", input)).collect::<Result<_, _>>()?,
        outputs: graph
            .output
            .iter()
            .map(|output| read_spec("output", output))
            .collect::<Result<_, _>>()?,
    };
    if contract.outputs.is_empty() {
        return Err(LoadError("the graph has no outputs".into()));
    }
    Ok(contract)
}

fn read_spec(end: &str, value: &pb::ValueInfoProto) -> Result<TensorSpec, LoadError> {
    let name = &value.name;
    let Some(pb::type_proto::Value::TensorType(tensor)) =
        value.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Err(LoadError(format!(
            "{end} `{name}` is not a tensor, and nothing else is served: export the graph with tensors (of scikit-learn, with `zipmap=False`)"
        )));
    };
    let datatype = from_onnx(tensor.elem_type).ok_or_else(|| {
        let known = pb::tensor_proto::DataType::try_from(tensor.elem_type);
        let known = known.ok().map(|known| known.as_str_name());
        let known = known.or_else(|| Narrow::of(tensor.elem_type).map(Narrow::name));
        let element = known.map_or_else(|| tensor.elem_type.to_string(), str::to_owned);
        LoadError(format!(
            "{end} `{name}` has ONNX's element type {element}, which the protocol lacks: give it another, with a Cast in the graph"
        ))
    })?;
    let dims = tensor.shape.as_ref().map(|shape| &shape.dim[..]).unwrap_or_default();
    let shape = dims.iter().map(|dim| match dim.value {
        Some(pb::tensor_shape_proto::dimension::Value::DimValue(size)) if size >= 0 => size,
        _ => -1,
    });
    Ok(TensorSpec { name: name.clone(), datatype, shape: shape.collect() })
}

/// Refuses what an engine could not be given, or give.
pub(crate) fn check(
    contract: &Contract,
    engine: EngineKind,
    has: impl Fn(Datatype) -> bool,
) -> Result<(), LoadError> {
    let ends = [("input", &contract.inputs), ("output", &contract.outputs)];
    for (end, spec) in ends.iter().flat_map(|(end, specs)| specs.iter().map(move |it| (end, it))) {
        let TensorSpec { name, datatype, .. } = spec;
        if !has(*datatype) {
            return Err(LoadError(format!(
                "{end} `{name}` is {datatype}, which {engine} lacks: give it another type, with a Cast in the graph"
            )));
        }
    }
    Ok(())
}

/// Exporters often leave an output's shape out, or free where the graph makes it fixed: what
/// the engine inferred is taken where it says more.
pub(crate) fn fill_in(outputs: &mut [TensorSpec], inferred: &[Inferred]) -> Result<(), LoadError> {
    for (spec, found) in outputs.iter_mut().zip(inferred) {
        if spec.shape.len() != found.shape.len() {
            spec.shape.clone_from(&found.shape);
        } else {
            for (size, &found) in spec.shape.iter_mut().zip(&found.shape) {
                if *size >= 0 && found >= 0 && *size != found {
                    return Err(LoadError(format!(
                        "output `{}` is declared with a size of {size} that comes out as {found}",
                        spec.name
                    )));
                }
                *size = if *size < 0 { found } else { *size };
            }
        }
        if found.datatype != Some(spec.datatype) {
            let came = found.datatype.map_or("a type the protocol lacks", Datatype::name);
            return Err(LoadError(format!(
                "output `{}` is declared {} and comes out as {came}",
                spec.name, spec.datatype
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
