//! Squares of whole numbers, which tract makes of products and powers: it computes some as floats, and
//! the others not at all. They are products again.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::tract_core::ops::math::{Square, mul};

use super::barrier::Barrier;

pub(super) fn fuse(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let is_square = node.op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<Square>());
    if !is_square || !node.outputs[0].fact.datum_type.is_integer() {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let factor = patch.tap_model(model, node.inputs[0])?;
    // Of twice the same tract would make a square.
    let name = format!("{}.factor", node.name);
    let other = patch.wire_node(name, Barrier, &[factor])?[0];
    let product = patch.wire_node(&node.name, mul(), &[factor, other])?;
    patch.shunt_outside(model, id.into(), product[0])?;
    Ok(Some(patch))
}
