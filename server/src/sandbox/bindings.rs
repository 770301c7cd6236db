//! The contract of wit/ as Rust types, and the way between them and the server's own.

wasmtime::component::bindgen!({
    path: "../wit",
    inline: "
        package wisp:host;
        world guest {
            import wisp:model/bundle@0.1.0;
            import wasi:logging/logging@0.1.0-draft;
            export wisp:model/handler@0.1.0;
        }
    ",
    world: "wisp:host/guest",
    exports: { default: async },
});

// Not a bare `wisp`: that is this crate, too.
pub(super) use self::wisp::model::types;

use super::{Fault, Request, Response};
use crate::tensor::{Contract, Datatype, Parameter, Tensor, TensorSpec};

macro_rules! same_datatypes {
    ($($ours:ident = $theirs:ident),* $(,)?) => {
        impl From<Datatype> for types::Datatype {
            fn from(datatype: Datatype) -> Self {
                match datatype { $(Datatype::$ours => types::Datatype::$theirs),* }
            }
        }
        impl From<types::Datatype> for Datatype {
            fn from(datatype: types::Datatype) -> Self {
                match datatype { $(types::Datatype::$theirs => Datatype::$ours),* }
            }
        }
    };
}

same_datatypes! {
    Bool = Bool, Uint8 = Uint8, Uint16 = Uint16, Uint32 = Uint32, Uint64 = Uint64,
    Int8 = Int8, Int16 = Int16, Int32 = Int32, Int64 = Int64,
    Fp16 = Fp16, Bf16 = Bf16, Fp32 = Fp32, Fp64 = Fp64, Bytes = Bytes,
}

impl From<Tensor> for types::Tensor {
    fn from(Tensor { name, datatype, shape, data }: Tensor) -> Self {
        Self { name, datatype: datatype.into(), shape, data }
    }
}

impl From<types::Tensor> for Tensor {
    fn from(types::Tensor { name, datatype, shape, data }: types::Tensor) -> Self {
        Self { name, datatype: datatype.into(), shape, data }
    }
}

impl From<Parameter> for types::Parameter {
    fn from(parameter: Parameter) -> Self {
        match parameter {
            Parameter::Boolean(value) => Self::Boolean(value),
            Parameter::Integer(value) => Self::Integer(value),
            Parameter::Number(value) => Self::Number(value),
            Parameter::Text(value) => Self::Text(value),
        }
    }
}

impl From<types::Parameter> for Parameter {
    fn from(parameter: types::Parameter) -> Self {
        match parameter {
            types::Parameter::Boolean(value) => Self::Boolean(value),
            types::Parameter::Integer(value) => Self::Integer(value),
            types::Parameter::Number(value) => Self::Number(value),
            types::Parameter::Text(value) => Self::Text(value),
        }
    }
}

impl From<TensorSpec> for types::TensorSpec {
    fn from(TensorSpec { name, datatype, shape }: TensorSpec) -> Self {
        Self { name, datatype: datatype.into(), shape }
    }
}

impl From<Contract> for types::Contract {
    fn from(Contract { inputs, outputs }: Contract) -> Self {
        Self {
            inputs: inputs.into_iter().map(Into::into).collect(),
            outputs: outputs.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Request> for types::Request {
    fn from(Request { inputs, outputs, parameters }: Request) -> Self {
        Self {
            inputs: inputs.into_iter().map(Into::into).collect(),
            outputs,
            parameters: parameters.into_iter().map(|(name, value)| (name, value.into())).collect(),
        }
    }
}

impl From<types::Response> for Response {
    fn from(types::Response { outputs, parameters }: types::Response) -> Self {
        Self {
            outputs: outputs.into_iter().map(Into::into).collect(),
            parameters: parameters.into_iter().map(|(name, value)| (name, value.into())).collect(),
        }
    }
}

impl From<types::Error> for Fault {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::InvalidInput(text) => Fault::InvalidInput(cut(text)),
            types::Error::Unsupported(text) => Fault::Unsupported(cut(text)),
            types::Error::Internal(text) => Fault::Internal(cut(text)),
        }
    }
}

/// Longer error texts of a guest are cut: they go to the client and to the log.
const MAX_ERROR_BYTES: usize = 4 << 10;

fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
        text.push('…');
    }
    text
}
