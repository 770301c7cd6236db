//! The smallest guest: gives back the bytes it got. A start for one's own, and what the
//! benches measure a sandbox by.

use wisp_guest::{Contract, Datatype, Error, Model, Request, Response, Tensor, TensorSpec};

struct Echo;

impl Model for Echo {
    fn prepare() -> Result<(Self, Contract), String> {
        let spec = |name| TensorSpec::new(name, Datatype::Bytes, [1]);
        Ok((Echo, Contract { inputs: vec![spec("in")], outputs: vec![spec("out")] }))
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        Ok(Response::from([Tensor::bytes("out", &request.input("in")?.to_bytes()?)]))
    }
}

wisp_guest::export!(Echo);
