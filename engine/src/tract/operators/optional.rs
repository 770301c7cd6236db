//! OptionalHasElement and OptionalGetElement, of tensors and of nothing.

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Form, Kernel, built, one};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("OptionalHasElement", |_, node| built(node, HasElement));
    operators.insert("OptionalGetElement", |_, node| built(node, GetElement));
}

#[derive(Debug)]
struct HasElement;

impl Kernel for HasElement {
    fn name(&self) -> &'static str {
        "OptionalHasElement"
    }

    fn outputs(&self, _inputs: &[Form]) -> TractResult<TVec<Form>> {
        Ok(tvec![Form::new(DatumType::Bool, [])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        Ok(tvec![tensor0(!inputs.is_empty())])
    }
}

#[derive(Debug)]
struct GetElement;

impl Kernel for GetElement {
    fn name(&self) -> &'static str {
        "OptionalGetElement"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        Ok(tvec![one(inputs)?.clone()])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        Ok(tvec![one(inputs)?.clone().into_tensor()])
    }
}
