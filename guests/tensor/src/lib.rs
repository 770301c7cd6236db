//! The generic guest: tensors in, tensors out, through the bundle's graph `model`.
//! It serves a bare ONNX file, whose inputs and outputs are its contract.

use wisp_guest::{Contract, Error, Graph, Model, Request, Response, Value, describe_graph};

const GRAPH: &str = "model";

struct Passthrough {
    contract: Contract,
}

impl Model for Passthrough {
    fn prepare() -> Result<(Self, Contract), String> {
        let contract = describe_graph(GRAPH)?;
        Ok((Self { contract: contract.clone() }, contract))
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        let inputs =
            request.inputs.iter().map(|input| Ok((input.name.as_str(), Value::try_from(input)?)));
        let values = Graph::load(GRAPH)?.compute(inputs.collect::<Result<Vec<_>, Error>>()?)?;
        let outputs = self.contract.outputs.iter().zip(values);
        let wanted = outputs.filter(|(spec, _)| request.wants(&spec.name));
        let outputs = wanted.map(|(spec, (_, value))| value.to_tensor(&spec.name, spec.datatype));
        Ok(Response { outputs: outputs.collect::<Result<_, _>>()?, parameters: Vec::new() })
    }
}

wisp_guest::export!(Passthrough);
