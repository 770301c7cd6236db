//! Gives each input back as an output, its bits unchanged.

use wisp_guest::{Contract, Datatype, Request, Tensor, TensorSpec};

const DATATYPES: [Datatype; 14] = [
    Datatype::Bool,
    Datatype::Uint8,
    Datatype::Uint16,
    Datatype::Uint32,
    Datatype::Uint64,
    Datatype::Int8,
    Datatype::Int16,
    Datatype::Int32,
    Datatype::Int64,
    Datatype::Fp16,
    Datatype::Bf16,
    Datatype::Fp32,
    Datatype::Fp64,
    Datatype::Bytes,
];

/// The name of each input's output, in the contract's order.
pub(crate) struct Identity(Vec<String>);

impl Identity {
    /// Reads `INPUT OUTPUT DATATYPE SHAPE; …`, as `x y FP32 -1,4`; a scalar has no shape.
    ///
    /// # Errors
    /// The tensor that is not so.
    pub(crate) fn parse(tensors: &str) -> Result<(Self, Contract), String> {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for tensor in tensors.split(';').map(str::trim) {
            let odd = || format!("expected `INPUT OUTPUT DATATYPE SHAPE`, got `{tensor}`");
            let words: Vec<&str> = tensor.split_whitespace().collect();
            let (input, output, datatype, shape) = match words[..] {
                [input, output, datatype] => (input, output, datatype, Vec::new()),
                [input, output, datatype, shape] => {
                    let sizes = shape.split(',').map(str::parse);
                    let shape = sizes.collect::<Result<Vec<i64>, _>>().map_err(|_| odd())?;
                    (input, output, datatype, shape)
                }
                _ => return Err(odd()),
            };
            let datatype =
                DATATYPES.into_iter().find(|known| known.name() == datatype).ok_or_else(odd)?;
            inputs.push(TensorSpec::new(input, datatype, shape.clone()));
            outputs.push(TensorSpec::new(output, datatype, shape));
        }
        let names = outputs.iter().map(|spec| spec.name.clone()).collect();
        Ok((Self(names), Contract { inputs, outputs }))
    }

    pub(crate) fn infer(&self, request: &Request) -> Vec<Tensor> {
        let pairs = self.0.iter().zip(&request.inputs);
        let wanted = pairs.filter(|(output, _)| request.wants(output));
        wanted.map(|(output, input)| Tensor { name: output.clone(), ..input.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_read_from_one_setting() {
        let (identity, contract) = Identity::parse("a b BYTES -1,2; x y FP16").unwrap();
        assert_eq!(identity.0, ["b", "y"]);
        let spec = &contract.inputs[0];
        assert_eq!((spec.name.as_str(), spec.datatype.name()), ("a", "BYTES"));
        assert_eq!(spec.shape, [-1, 2]);
        assert_eq!(contract.outputs[1].shape, [0i64; 0]);
    }

    #[test]
    fn what_is_no_tensor_is_named() {
        for odd in ["", "x y", "x y FLOAT 1", "x y FP32 1,b", "x y FP32 1 2"] {
            let error = Identity::parse(odd).map(|_| ()).unwrap_err();
            assert!(error.ends_with(&format!("got `{odd}`")), "{error}");
        }
    }
}
