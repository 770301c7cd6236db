//! Kernels of our own in tract's graphs: convolutions and products of matrices, with what
//! follows them, pooling, and functions of rows become operators of ours. What is not
//! recognised stays tract's.

mod barrier;
mod binary;
mod blocks;
mod chain;
mod conv;
mod deformed;
mod found;
mod gelu;
mod line;
mod one_hot;
mod pool;
mod product;
mod quantized;
mod reduction;
mod rows;
mod spans;
mod square;
mod table;
mod variance;
mod weights;

pub(super) use barrier::Barrier;
pub(super) use binary::FusedBinary;
pub(super) use blocks::GatheredBlocks;
pub(super) use conv::FusedConv;
pub(super) use deformed::DeformedWindows;
pub(super) use found::After;
pub(super) use pool::FusedPool;
pub(super) use product::FusedProduct;
pub(super) use quantized::{DEQUANTIZE, MAX_WEIGHTS, Quantize, limits_of};
pub(super) use reduction::Reduction;
pub(super) use rows::FusedRows;
pub(super) use table::FusedTable;
pub(super) use weights::PackedWeights;

use tract_onnx::prelude::*;

/// tract's own simplifications, with our operators put in where they can be. tract's `optimize`
/// is still to be done.
///
/// # Errors
/// tract's.
pub(super) fn fuse(mut model: TypedModel, packed: &PackedWeights) -> TractResult<TypedModel> {
    let kept = found::keep(&mut model)?;
    // Before decluttering: it turns convolutions into products and moves their axes.
    model.prop_consts()?;
    barrier::raise(&mut model)?;
    quantized::fuse(&mut model)?;
    each(&mut model, |model, id| conv::fuse(model, id, packed))?;
    each(&mut model, pool::fuse)?;
    model.declutter()?;
    each(&mut model, square::fuse)?;
    each(&mut model, |model, id| one_hot::fuse(model, id, packed))?;
    each(&mut model, |model, id| product::fuse(model, id, packed))?;
    each(&mut model, rows::fuse)?;
    each(&mut model, table::fuse)?;
    each(&mut model, binary::fuse)?;
    each(&mut model, reduction::fuse)?;
    found::raise(&mut model, &kept)?;
    Ok(model)
}

/// Has `fuse` replace each node that it can, with what follows it.
fn each(
    model: &mut TypedModel,
    fuse: impl Fn(&TypedModel, usize) -> TractResult<Option<TypedModelPatch>>,
) -> TractResult<()> {
    for id in model.eval_order()? {
        if let Some(patch) = fuse(model, id)? {
            patch.apply(model)?;
        }
    }
    model.compact()
}
