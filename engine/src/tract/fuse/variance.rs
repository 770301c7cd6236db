//! Layer normalisation along one axis, where its variance is the mean of squares less the square of
//! the mean, as Flax writes it. It is computed with the differences from the mean: that loses less.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;
use tract_onnx::tract_hir::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_hir::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_hir::tract_core::ops::math::{Add, Max, Mul, Rsqrt, Square, Sub};
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Reducer};

use super::chain::by_channel;
use super::rows::{Found, RowFunction, is_mean, with_constant};

/// `(x - mean) × (rsqrt(max(mean of squares - mean², 0) + epsilon) × gain) + bias`, ending at `id`.
pub(super) fn norm(model: &TypedModel, id: usize) -> TractResult<Option<Found>> {
    let Some((scaled, bias)) = with_constant::<Add>(model, id)? else { return Ok(None) };
    let Some([a, b]) = operands::<Mul>(model, scaled) else { return Ok(None) };
    for (centred, factor) in [(a, b), (b, a)] {
        let Some([x, mean]) = operands::<Sub>(model, centred) else { continue };
        let Some((root, gain)) = with_constant::<Mul>(model, factor.node)? else { continue };
        let Some((axis, epsilon)) = deviation(model, root, x, mean)? else { continue };
        let shape = &model.outlet_fact(x)?.shape;
        let Ok(length) = shape[axis].to_usize() else { continue };
        let gain = by_channel(&gain, axis, length);
        let Some((gain, bias)) = gain.zip(by_channel(&bias, axis, length)) else { continue };
        if model.node(id).outputs[0].fact.shape != *shape {
            continue;
        }
        let (gain, bias) = (gain.into(), bias.into());
        let function = match axis + 1 == shape.rank() {
            // Columns are done side by side: along the last axis there is but one at a time.
            true => RowFunction::LayerNorm { gain, bias, epsilon },
            false => RowFunction::AxisNorm { gain, bias, epsilon, axis },
        };
        return Ok(Some((function, x, id)));
    }
    Ok(None)
}

/// The axis and epsilon of `rsqrt(max(mean of x² - mean², 0) + epsilon)`, the bound perhaps left out.
fn deviation(
    model: &TypedModel,
    root: OutletId,
    x: OutletId,
    mean: OutletId,
) -> TractResult<Option<(usize, f32)>> {
    let Some(sum) = operand::<Rsqrt>(model, root) else { return Ok(None) };
    let Some((variance, epsilon)) = with_constant::<Add>(model, sum.node)? else { return Ok(None) };
    let (difference, least) = match with_constant::<Max>(model, variance.node)? {
        Some((difference, least)) => (difference, by_channel(&least, 0, 1)),
        None => (variance, Some(vec![0.0])),
    };
    let epsilon = by_channel(&epsilon, 0, 1).map(|epsilon| epsilon[0]);
    let (Some([squares, square]), Some(epsilon)) = (operands::<Sub>(model, difference), epsilon)
    else {
        return Ok(None);
    };
    let node = model.node(squares.node);
    let Some(op) = node.op_as::<Reduce>() else { return Ok(None) };
    let [axis] = op.axes[..] else { return Ok(None) };
    let fits = op.reducer == Reducer::MeanOfSquares
        && node.inputs[0] == x
        && operand::<Square>(model, square) == Some(mean)
        && least == Some(vec![0.0])
        && epsilon > 0.0
        && is_mean(model, mean, x, axis)?;
    Ok(fits.then_some((axis, epsilon)))
}

fn operands<O: BinMiniOp>(model: &TypedModel, outlet: OutletId) -> Option<[OutletId; 2]> {
    let node = model.node(outlet.node);
    node.op_as::<TypedBinOp>().filter(|op| op.0.is::<O>())?;
    node.inputs[..].try_into().ok()
}

fn operand<O: ElementWiseMiniOp>(model: &TypedModel, outlet: OutletId) -> Option<OutletId> {
    let node = model.node(outlet.node);
    node.op_as::<ElementWiseOp>().filter(|op| op.0.is::<O>())?;
    node.inputs.first().copied()
}
