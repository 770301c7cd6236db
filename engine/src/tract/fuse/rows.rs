//! Functions of single values, of rows (the last axis) and along an axis in single precision.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::tract_core::ops::math::{Add, Mul, Sub};
use tract_onnx::tract_hir::tract_core::ops::nn::{
    GeluApproximate, GeluExact, Reduce, Reducer, RmsNorm, Silu, Softmax, SoftmaxKind,
};
use wisp_kernels::columns::layer_norm_columns;
use wisp_kernels::elementwise::{Function, apply, layer_norm, softmax};
use wisp_kernels::{Activation, Steps, share_values};

use super::chain::by_channel;
use super::{gelu, variance};
use crate::tract::compiled::{Reader, Stored, Writer, stored_struct};
use crate::tract::team::OfThread;

/// Values are shared at multiples of it: none is then the rest of a vector for one thread only.
const LINE: usize = 16;

#[derive(Debug, Clone, PartialEq)]
pub(in crate::tract) enum RowFunction {
    Each(Function),
    Softmax,
    LayerNorm {
        gain: Arc<[f32]>,
        bias: Arc<[f32]>,
        epsilon: f32,
    },
    /// As a layer's, along any axis.
    AxisNorm {
        gain: Arc<[f32]>,
        bias: Arc<[f32]>,
        epsilon: f32,
        axis: usize,
    },
}

/// A function, its input, and the node at which it ends.
pub(super) type Found = (RowFunction, OutletId, usize);

/// A function that takes the place of its input where nothing else needs that.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::tract) struct FusedRows {
    function: RowFunction,
}

impl Eq for FusedRows {}

impl FusedRows {
    /// A function of each value.
    pub(super) fn each(function: Function) -> Self {
        Self { function: RowFunction::Each(function) }
    }

    /// The steps that values are rounded to, if that is what it does.
    pub(super) fn steps(&self) -> Option<Steps> {
        match self.function {
            RowFunction::Each(Function::Activation(Activation::Steps(steps))) => Some(steps),
            _ => None,
        }
    }
}

stored_struct!(FusedRows { function });

impl Stored for RowFunction {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        match self {
            RowFunction::Each(function) => to.variant(0, function),
            RowFunction::Softmax => to.variant(1, &()),
            RowFunction::LayerNorm { gain, bias, epsilon } => {
                to.variant(2, gain)?;
                bias.put(to)?;
                epsilon.put(to)
            }
            RowFunction::AxisNorm { gain, bias, epsilon, axis } => {
                to.variant(3, gain)?;
                bias.put(to)?;
                epsilon.put(to)?;
                axis.put(to)
            }
        }
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => RowFunction::Each(Stored::take(from)?),
            1 => RowFunction::Softmax,
            2 => RowFunction::LayerNorm {
                gain: Stored::take(from)?,
                bias: Stored::take(from)?,
                epsilon: Stored::take(from)?,
            },
            3 => RowFunction::AxisNorm {
                gain: Stored::take(from)?,
                bias: Stored::take(from)?,
                epsilon: Stored::take(from)?,
                axis: Stored::take(from)?,
            },
            _ => return None,
        })
    }
}

/// Replaces what our kernels do better.
pub(super) fn fuse(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let Some((function, input, last)) = found(model, id)? else { return Ok(None) };
    let fact = model.outlet_fact(input)?;
    if fact.datum_type != DatumType::F32 || fact.rank() == 0 {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let tap = patch.tap_model(model, input)?;
    let wired = patch.wire_node(&model.node(last).name, FusedRows { function }, &[tap])?;
    patch.shunt_outside(model, last.into(), wired[0])?;
    Ok(Some(patch))
}

fn found(model: &TypedModel, id: usize) -> TractResult<Option<Found>> {
    if let Some(function) = function(model, id)? {
        return Ok(Some((function, model.node(id).inputs[0], id)));
    }
    for find in [norm, variance::norm, gelu::gelu] {
        if let Some(found) = find(model, id)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn function(model: &TypedModel, id: usize) -> TractResult<Option<RowFunction>> {
    let node = model.node(id);
    if let Some(op) = node.op_as::<Softmax>() {
        let last = model.outlet_fact(node.inputs[0])?.rank().checked_sub(1);
        let is_ours = op.quant_output_dt.is_none()
            && op.kind == SoftmaxKind::default()
            && op.axes.len() == 1
            && last == op.axes.first().copied();
        return Ok(is_ours.then_some(RowFunction::Softmax));
    }
    let Some(op) = node.op_as::<ElementWiseOp>() else { return Ok(None) };
    Ok(if op.0.is::<GeluExact>() {
        Some(RowFunction::Each(Function::Gelu))
    } else if op.0.downcast_ref::<GeluApproximate>().is_some_and(|op| !op.fast_impl) {
        Some(RowFunction::Each(Function::GeluTanh))
    } else if op.0.is::<Silu>() {
        Some(RowFunction::Each(Function::Silu))
    } else {
        None
    })
}

/// `(x - mean(x)) / rms(x - mean(x)) × gain + bias`, ending at node `id`: tract leaves a layer's
/// normalisation as that. Returns its input, too.
fn norm(model: &TypedModel, id: usize) -> TractResult<Option<Found>> {
    let Some((scaled, bias)) = with_constant::<Add>(model, id)? else { return Ok(None) };
    let Some((normed, gain)) = with_constant::<Mul>(model, scaled.node)? else { return Ok(None) };
    let Some(op) = model.node(normed.node).op_as::<RmsNorm>() else { return Ok(None) };
    let centred = model.node(model.node(normed.node).inputs[0].node);
    let is_difference = centred.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Sub>());
    let [x, mean] = centred.inputs[..] else { return Ok(None) };
    let shape = &model.outlet_fact(x)?.shape;
    let Some(row) = shape.last().and_then(|size| size.to_usize().ok()) else { return Ok(None) };
    let axis = shape.len() - 1;
    if !is_difference || op.axis != axis || !is_mean(model, mean, x, axis)? {
        return Ok(None);
    }
    let gain = by_channel(&gain, axis, row);
    let Some((gain, bias)) = gain.zip(by_channel(&bias, axis, row)) else { return Ok(None) };
    let epsilon = op.eps.cast_to_scalar::<f32>()?;
    let (gain, bias) = (gain.into(), bias.into());
    Ok(Some((RowFunction::LayerNorm { gain, bias, epsilon }, x, id)))
}

/// The other operand of a binary node, and its constant.
pub(super) fn with_constant<O: BinMiniOp>(
    model: &TypedModel,
    id: usize,
) -> TractResult<Option<(OutletId, Arc<Tensor>)>> {
    let node = model.node(id);
    let is_ours = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<O>());
    let [a, b] = node.inputs[..] else { return Ok(None) };
    for (value, constant) in [(a, b), (b, a)] {
        if let Some(konst) = model.outlet_fact(constant)?.konst.clone().filter(|_| is_ours) {
            return Ok(Some((value, konst)));
        }
    }
    Ok(None)
}

/// Whether `mean` is the sum of `x` over an axis, times one over its length.
pub(super) fn is_mean(
    model: &TypedModel,
    mean: OutletId,
    x: OutletId,
    axis: usize,
) -> TractResult<bool> {
    let Some((sum, factor)) = with_constant::<Mul>(model, mean.node)? else { return Ok(false) };
    let Ok(length) = model.outlet_fact(x)?.shape[axis].to_usize() else { return Ok(false) };
    let node = model.node(sum.node);
    let is_sum = node
        .op_as::<Reduce>()
        .is_some_and(|op| matches!(op.reducer, Reducer::Sum) && op.axes[..] == [axis]);
    let factor = by_channel(&factor, 0, 1).map(|factor| factor[0] * length as f32);
    Ok(is_sum && node.inputs[0] == x && factor.is_some_and(|one| (one - 1.0).abs() < 1e-5))
}

impl Op for FusedRows {
    fn name(&self) -> StaticName {
        match self.function {
            RowFunction::Each(Function::Activation(Activation::Steps(_))) => "FusedSteps".into(),
            RowFunction::Each(_) => "FusedFunction".into(),
            RowFunction::Softmax => "FusedSoftmax".into(),
            RowFunction::LayerNorm { .. } | RowFunction::AxisNorm { .. } => "FusedLayerNorm".into(),
        }
    }

    op_as_typed_op!();
}

impl EvalOp for FusedRows {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut tensor = inputs.remove(0).into_tensor();
        let row = tensor.shape().last().copied().unwrap_or(1);
        if tensor.len() == 0 {
            return Ok(tvec!(tensor.into_tvalue()));
        }
        let shape: TVec<usize> = tensor.shape().into();
        let mut plain = tensor.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        match &self.function {
            // A function of each value counts as some ten products.
            RowFunction::Each(function) => {
                let each = |values: &mut [f32]| apply(*function, values);
                share_values(&OfThread, values, LINE, values.len() * 10, &each);
            }
            RowFunction::Softmax => softmax(values, row)?,
            RowFunction::LayerNorm { gain, bias, epsilon } => {
                layer_norm(values, gain, Some(bias), *epsilon)?;
            }
            RowFunction::AxisNorm { gain, bias, epsilon, axis } => {
                let inner = shape.get(axis.saturating_add(1)..).context("an axis of the tensor")?;
                let width = inner.iter().product();
                layer_norm_columns(values, width, gain, bias, *epsilon)?;
            }
        }
        Ok(tvec!(tensor.into_tvalue()))
    }
}

impl TypedOp for FusedRows {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }

    as_op!();
}
