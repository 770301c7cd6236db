//! Keeps tract from passing over a tensor. Where a repeated one is summed over the axis along which it
//! was repeated, its simplification takes the tensor from before, and a sum of one.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{MultiBroadcastTo, Tile};
use tract_onnx::tract_hir::tract_core::ops::cast::Cast;
use tract_onnx::tract_hir::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;

/// Gives its input back. Nothing is moved past it. Slices by steps have one before them, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct Barrier;

/// Puts one before each sum over axes of something repeated.
pub(super) fn raise(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        if !model.node(id).op_is::<EinSum>() {
            continue;
        }
        for slot in 0..model.node(id).inputs.len() {
            let outlet = model.node(id).inputs[slot];
            if is_repeated(model, outlet) {
                let name = format!("{}.barrier_{slot}", model.node(id).name);
                let fact = model.outlet_fact(outlet)?.without_value();
                let barrier = model.add_node(name, Barrier, tvec!(fact))?;
                model.add_edge(outlet, InletId::new(barrier, 0))?;
                model.add_edge(OutletId::new(barrier, 0), InletId::new(id, slot))?;
            }
        }
    }
    Ok(())
}

/// Whether it was repeated, before anything that the repeating could be moved past.
fn is_repeated(model: &TypedModel, mut outlet: OutletId) -> bool {
    loop {
        let node = model.node(outlet.node);
        if node.op_is::<MultiBroadcastTo>() || node.op_is::<Tile>() {
            return true;
        }
        let is_passed =
            node.op_is::<ElementWiseOp>() || node.op_is::<AxisOp>() || node.op_is::<Cast>();
        match node.inputs.first() {
            Some(&before) if is_passed => outlet = before,
            _ => return false,
        }
    }
}

impl Op for Barrier {
    fn name(&self) -> StaticName {
        "Barrier".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Barrier {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Barrier {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }

    as_op!();
}
