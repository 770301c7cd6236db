//! MatMul as tract has it, and of two vectors, which it refuses.

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_hir::internal::*;

use super::theirs::{Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("MatMul", |context, node| rewired(context, node, Product));
}

#[derive(Debug, Clone)]
struct Product;

impl Wiring for Product {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let ranks = inputs.iter().map(|&input| Ok(model.outlet_fact(input)?.rank()));
        let ranks: TVec<usize> = ranks.collect::<TractResult<_>>()?;
        if *ranks != [1, 1] {
            return inner.wire(prefix, model, inputs);
        }
        let name = format!("{prefix}.column");
        let column = model.wire_node(name, AxisOp::Add(1), &inputs[1..])?[0];
        let product = inner.wire(&format!("{prefix}.line"), model, &[inputs[0], column])?;
        model.wire_node(prefix, AxisOp::Rm(0), &product)
    }
}
