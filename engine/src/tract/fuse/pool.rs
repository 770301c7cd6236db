//! Pooling over one or two dimensions in single precision.

use std::cell::RefCell;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::cnn::{MaxPool, PoolSpec, SumPool};
use wisp_kernels::pool::{Pool, Pooling};

use super::conv::window;
use crate::tract::compiled::stored_struct;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, Clone)]
pub(in crate::tract) struct FusedPool {
    pool: Pool,
    input: [usize; 4],
    output: TVec<usize>,
}

stored_struct!(FusedPool { pool, input, output });

/// Replaces pooling that our kernels can do.
pub(super) fn fuse(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let Some(fused) = fused(model, id)? else { return Ok(None) };
    let mut patch = TypedModelPatch::default();
    let tap = patch.tap_model(model, model.node(id).inputs[0])?;
    let wired = patch.wire_node(&model.node(id).name, fused, &[tap])?;
    patch.shunt_outside(model, id.into(), wired[0])?;
    Ok(Some(patch))
}

fn fused(model: &TypedModel, id: usize) -> TractResult<Option<FusedPool>> {
    let node = model.node(id);
    let Some((spec, pooling)) = spec(node) else { return Ok(None) };
    let fact = model.outlet_fact(node.inputs[0])?;
    let output = node.outputs[0].fact.shape.as_concrete().map(TVec::<usize>::from);
    let (Some((window, input)), Some(output)) = (window(spec, fact), output) else {
        return Ok(None);
    };
    let pool = Pool { window, pooling, ceil: false };
    let elements = pool.output_shape(input).map(|shape| shape.iter().product::<usize>());
    // tract's sizes are right where a window may reach beyond the pads.
    let same = elements.is_ok_and(|elements| elements == output.iter().product::<usize>());
    Ok(same.then_some(FusedPool { pool, input, output }))
}

fn spec(node: &TypedNode) -> Option<(&PoolSpec, Pooling)> {
    if let Some(op) = node.op_as::<MaxPool>() {
        return op.with_index_outputs.is_none().then_some((&op.pool_spec, Pooling::Max));
    }
    let op = node.op_as::<SumPool>().filter(|op| op.normalize)?;
    Some(match op.count_include_pad {
        true => (&op.pool_spec, Pooling::AverageWithPads),
        false => (&op.pool_spec, Pooling::Average),
    })
}

impl PartialEq for FusedPool {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

impl Eq for FusedPool {}

impl Op for FusedPool {
    fn name(&self) -> StaticName {
        "FusedPool".into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedPool {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let plain = inputs[0].try_as_plain_ram()?;
        // SAFETY: the kernel writes every element.
        let mut output = unsafe { Tensor::uninitialized::<f32>(&self.output)? };
        let mut y = output.try_as_plain_ram_mut()?;
        SCRATCH.with_borrow_mut(|scratch| {
            self.pool.run(
                plain.as_slice::<f32>()?,
                self.input,
                y.as_slice_mut::<f32>()?,
                scratch,
            )?;
            TractResult::Ok(())
        })?;
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FusedPool {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.output)))
    }

    as_op!();
}
