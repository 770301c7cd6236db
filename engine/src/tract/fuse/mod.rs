//! Kernels of our own in tract's graphs: convolutions and products of matrices, with what
//! follows them, pooling, and functions of rows become operators of ours. What is not
//! recognised stays tract's.

mod barrier;
mod chain;
mod conv;
mod line;
mod pool;
mod product;
mod rows;
mod weights;

pub(super) use weights::PackedWeights;

use tract_onnx::prelude::*;

/// tract's own optimisation, with our operators put in where they can be.
///
/// # Errors
/// tract's.
pub(super) fn optimize(mut model: TypedModel, packed: &PackedWeights) -> TractResult<TypedModel> {
    // Before decluttering: it turns convolutions into products and moves their axes.
    model.prop_consts()?;
    barrier::raise(&mut model)?;
    conv::fuse(&mut model, packed)?;
    pool::fuse(&mut model)?;
    model.declutter()?;
    product::fuse(&mut model, packed)?;
    rows::fuse(&mut model)?;
    model.optimize()?;
    Ok(model)
}
