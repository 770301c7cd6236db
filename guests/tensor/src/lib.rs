//! The generic guest: tensors in, tensors out, through the bundle's graph `model`.
//! It serves a bare ONNX file, whose inputs and outputs are its contract.

use wisp_guest::{
    Contract, Datatype, Error, Graph, Model, Request, Response, Tensor, TensorType, Value,
    describe_graph,
};

const GRAPH: &str = "model";

struct Passthrough {
    contract: Contract,
}

impl Model for Passthrough {
    fn prepare() -> Result<(Self, Contract), String> {
        let contract = describe_graph(GRAPH)?;
        for spec in contract.inputs.iter().chain(&contract.outputs) {
            if to_nn(spec.datatype).is_none() {
                return Err(format!(
                    "tensor `{}` is {}, which wasi-nn cannot carry",
                    spec.name,
                    spec.datatype.name()
                ));
            }
        }
        Ok((Self { contract: contract.clone() }, contract))
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        let inputs = request.inputs.iter().map(|input| Ok((input.name.as_str(), to_value(input)?)));
        let values = Graph::load(GRAPH)?.compute(inputs.collect::<Result<Vec<_>, Error>>()?)?;
        let outputs = self.contract.outputs.iter().zip(values);
        let wanted = outputs.filter(|(spec, _)| request.wants(&spec.name));
        let outputs = wanted.map(|(spec, (_, value))| Tensor {
            name: spec.name.clone(),
            datatype: spec.datatype,
            shape: value.shape().into_iter().map(u64::from).collect(),
            data: value.data(),
        });
        Ok(Response { outputs: outputs.collect(), parameters: Vec::new() })
    }
}

fn to_value(tensor: &Tensor) -> Result<Value, Error> {
    let too_large =
        || Error::InvalidInput(format!("input `{}`: a dimension is over 2^32 - 1", tensor.name));
    let shape: Result<Vec<u32>, _> = tensor.shape.iter().map(|&size| size.try_into()).collect();
    let datatype = to_nn(tensor.datatype).ok_or_else(|| {
        Error::Unsupported(format!("wasi-nn cannot carry {}", tensor.datatype.name()))
    })?;
    Ok(Value::new(&shape.map_err(|_| too_large())?, datatype, &tensor.data))
}

/// The element type as wasi-nn names it, where it has it.
fn to_nn(datatype: Datatype) -> Option<TensorType> {
    Some(match datatype {
        Datatype::Uint8 => TensorType::U8,
        Datatype::Int32 => TensorType::I32,
        Datatype::Int64 => TensorType::I64,
        Datatype::Fp16 => TensorType::Fp16,
        Datatype::Bf16 => TensorType::Bf16,
        Datatype::Fp32 => TensorType::Fp32,
        Datatype::Fp64 => TensorType::Fp64,
        _ => return None,
    })
}

wisp_guest::export!(Passthrough);
