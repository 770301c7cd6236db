//! What follows a convolution or a product and can be done while its values are in registers.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::cast::Cast;
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::tract_core::ops::math::{Add, Div, Max, Min, Mul, Sub};
use tract_onnx::tract_hir::tract_core::ops::nn::HardSwish;

use wisp_kernels::{Activation, ResidualOrder, Steps};

use super::rows::FusedRows;

/// The successors of a node that its kernel takes over, as one function of its sums:
/// `activation(sums × scale + bias [+ residual]) × post.0 + post.1`.
#[derive(Debug)]
pub(super) struct Chain {
    /// The last node that is taken over; the head itself where there is none.
    pub(super) last: usize,
    /// By channel.
    pub(super) scale: Option<Vec<f32>>,
    pub(super) bias: Vec<f32>,
    pub(super) residual: Option<OutletId>,
    pub(super) order: ResidualOrder,
    pub(super) activation: Activation,
    pub(super) post: Option<(f32, f32)>,
}

/// A binary operator with one operand on the chain: what it does with the other.
enum Step {
    Multiply(Vec<f32>),
    Add(Vec<f32>),
    AtLeast(f32),
    AtMost(f32),
    Residual(OutletId),
}

impl Chain {
    /// Follows the nodes after `head`, whose sums have their channels on `axis` and `bias` yet
    /// to be added.
    pub(super) fn follow(
        model: &TypedModel,
        head: usize,
        axis: usize,
        bias: Vec<f32>,
    ) -> TractResult<Self> {
        let mut chain = Self {
            last: head,
            scale: None,
            bias,
            residual: None,
            order: ResidualOrder::BeforeActivation,
            activation: Activation::None,
            post: None,
        };
        while chain.take_next(model, axis)? {}
        Ok(chain)
    }

    fn take_next(&mut self, model: &TypedModel, axis: usize) -> TractResult<bool> {
        if model.output_outlets()?.iter().any(|outlet| outlet.node == self.last) {
            return Ok(false);
        }
        let is_linear = self.activation == Activation::None && self.post.is_none();
        if is_linear && let Some((last, post)) = hard_swish(model, self.last)? {
            self.activation = Activation::HardSwish;
            self.post = (post != 1.0).then_some((post, 0.0));
            self.last = last;
            return Ok(true);
        }
        let Some(next) = model.single_succ(self.last)? else { return Ok(false) };
        let shape = &model.node(self.last).outputs[0].fact.shape;
        if model
            .node_output_facts(next.id)?
            .first()
            .is_none_or(|fact| fact.shape != *shape || fact.datum_type != DatumType::F32)
        {
            return Ok(false);
        }
        let taken = if next.op_is::<Cast>() {
            true
        } else if let Some(steps) = next.op_as::<FusedRows>().and_then(FusedRows::steps) {
            self.take_steps(steps)
        } else if let Some(function) = next.op_as::<ElementWiseOp>() {
            self.take_function(function)
        } else {
            match step(model, next, self.last, axis, self.bias.len())? {
                Some(step) => self.take_step(step),
                None => false,
            }
        };
        if taken {
            self.last = next.id;
        }
        Ok(taken)
    }

    fn take_function(&mut self, function: &ElementWiseOp) -> bool {
        if self.activation != Activation::None || self.post.is_some() {
            return false;
        }
        if function.0.is::<HardSwish>() {
            self.activation = Activation::HardSwish;
            return true;
        }
        false
    }

    /// To clip first is to clip to the nearest steps.
    fn take_steps(&mut self, mut steps: Steps) -> bool {
        let (min, max) = match self.activation {
            _ if self.post.is_some() => return false,
            Activation::None => (f32::NEG_INFINITY, f32::INFINITY),
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Clip { min, max } => (min, max),
            _ => return false,
        };
        let [min, max] = [min, max].map(|bound| (bound / steps.scale).round_ties_even());
        (steps.least, steps.most) = (steps.least.max(min), steps.most.min(max));
        let is_one = steps.least <= steps.most;
        if is_one {
            self.activation = Activation::Steps(steps);
        }
        is_one
    }

    fn take_step(&mut self, step: Step) -> bool {
        let is_linear = self.activation == Activation::None && self.post.is_none();
        match step {
            Step::Multiply(factors) if is_linear && self.residual.is_none() => {
                for (bias, factor) in self.bias.iter_mut().zip(&factors) {
                    *bias *= factor;
                }
                let scale = self.scale.get_or_insert_with(|| vec![1.0; factors.len()]);
                for (scale, factor) in scale.iter_mut().zip(&factors) {
                    *scale *= factor;
                }
                true
            }
            Step::Add(terms) if is_linear => {
                for (bias, term) in self.bias.iter_mut().zip(&terms) {
                    *bias += term;
                }
                true
            }
            Step::Multiply(factors) => {
                self.take_post(&factors, |post, factor| (post.0 * factor, post.1 * factor))
            }
            Step::Add(terms) => self.take_post(&terms, |post, term| (post.0, post.1 + term)),
            Step::Residual(other) if is_linear && self.residual.is_none() => {
                self.residual = Some(other);
                true
            }
            Step::AtLeast(least) if self.post.is_none() => self.clip(least, f32::INFINITY),
            Step::AtMost(most) if self.post.is_none() => self.clip(f32::NEG_INFINITY, most),
            _ => false,
        }
    }

    /// What comes after the activation is one factor and one term for all channels.
    fn take_post(&mut self, values: &[f32], with: impl Fn((f32, f32), f32) -> (f32, f32)) -> bool {
        let same = values.iter().all(|value| *value == values[0]);
        match values.first() {
            Some(&value) if same => {
                self.post = Some(with(self.post.unwrap_or((1.0, 0.0)), value));
                true
            }
            _ => false,
        }
    }

    fn clip(&mut self, least: f32, most: f32) -> bool {
        let (min, max) = match self.activation {
            Activation::None => (least, most),
            Activation::Relu => (least.max(0.0), most),
            // A bound outside the other one would have to win; nets have none such.
            Activation::Clip { min, max } if most > min && least < max => {
                (min.max(least), max.min(most))
            }
            _ => return false,
        };
        self.activation = match (min, max) {
            (0.0, f32::INFINITY) => Activation::Relu,
            (min, max) if min <= max => Activation::Clip { min, max },
            _ => return false,
        };
        true
    }
}

/// What `node` does to the values of `from`, in terms of a constant by channel.
fn step(
    model: &TypedModel,
    node: &TypedNode,
    from: usize,
    axis: usize,
    channels: usize,
) -> TractResult<Option<Step>> {
    let Some(op) = node.op_as::<TypedBinOp>() else { return Ok(None) };
    let [a, b] = node.inputs[..] else { return Ok(None) };
    let (other, is_first) = if a.node == from { (b, true) } else { (a, false) };
    if other.node == from {
        return Ok(None);
    }
    let fact = model.outlet_fact(other)?;
    let Some(konst) = &fact.konst else {
        let is_same = fact.shape == model.node(from).outputs[0].fact.shape;
        let adds = op.0.is::<Add>() && is_same && fact.datum_type == DatumType::F32;
        return Ok(adds.then_some(Step::Residual(other)));
    };
    let Some(values) = by_channel(konst, axis, channels) else { return Ok(None) };
    let scalar = values.iter().all(|value| *value == values[0]).then(|| values[0]);
    Ok(match scalar {
        _ if op.0.is::<Add>() => Some(Step::Add(values)),
        _ if op.0.is::<Mul>() => Some(Step::Multiply(values)),
        _ if op.0.is::<Sub>() && is_first => {
            Some(Step::Add(values.iter().map(|value| -value).collect()))
        }
        _ if op.0.is::<Div>() && is_first => {
            Some(Step::Multiply(values.iter().map(|value| value.recip()).collect()))
        }
        Some(value) if op.0.is::<Max>() => Some(Step::AtLeast(value)),
        Some(value) if op.0.is::<Min>() => Some(Step::AtMost(value)),
        _ => None,
    })
}

/// A constant as one value a channel, where it is that or one for all.
pub(super) fn by_channel(konst: &Tensor, axis: usize, channels: usize) -> Option<Vec<f32>> {
    if konst.datum_type() != DatumType::F32 || channels == 0 {
        return None;
    }
    let plain = konst.try_as_plain_ram().ok()?;
    let values = plain.as_slice::<f32>().ok()?;
    let is_per_channel = values.len() == channels && konst.shape().get(axis) == Some(&channels);
    match values {
        [value] => Some(vec![*value; channels]),
        _ => is_per_channel.then(|| values.to_vec()),
    }
}

/// The factor and term that come after an activation.
pub(super) fn apply_post(post: Option<(f32, f32)>, values: &mut [f32]) {
    if let Some((factor, term)) = post {
        values.iter_mut().for_each(|value| *value = *value * factor + term);
    }
}

/// `x × clip(x × a + b, 0, c)`, perhaps divided: hard-swish as exporters write it out. Returns
/// the last of its nodes, and the factor that is left: it is hard-swish times that.
fn hard_swish(model: &TypedModel, from: usize) -> TractResult<Option<(usize, f32)>> {
    let node = model.node(from);
    let [successors] = node.outputs.iter().map(|output| &output.successors).collect::<Vec<_>>()[..]
    else {
        return Ok(None);
    };
    if successors.len() != 2 {
        return Ok(None);
    }
    let product = successors.iter().map(|inlet| inlet.node).find(|&id| {
        model.node(id).op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>())
            && model.node(id).inputs.iter().filter(|input| input.node == from).count() == 1
    });
    let Some(product) = product else { return Ok(None) };
    let Some(gate) = successors.iter().map(|inlet| inlet.node).find(|&id| id != product) else {
        return Ok(None);
    };
    let Some((slope, offset, least, most)) = gate_of(model, from, gate, product)? else {
        return Ok(None);
    };
    // clip(slope x + offset, 0, most) = most × hard-sigmoid, where slope and offset agree.
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
    let fits = least == 0.0 && close(slope * 6.0, most) && close(offset * 2.0, most);
    Ok(fits.then_some((product, most)))
}

/// The nodes from `gate` to `product` as `clip(x × slope + offset, least, most)`.
fn gate_of(
    model: &TypedModel,
    from: usize,
    gate: usize,
    product: usize,
) -> TractResult<Option<(f32, f32, f32, f32)>> {
    let (mut slope, mut offset) = (1.0, 0.0);
    let (mut least, mut most) = (f32::NEG_INFINITY, f32::INFINITY);
    let (mut before, mut at) = (from, gate);
    // An exporter's gate has three or four nodes.
    for _ in 0..6 {
        if at == product {
            return Ok(Some((slope, offset, least, most)));
        }
        match step(model, model.node(at), before, 0, 1)? {
            Some(Step::Add(term)) if least == f32::NEG_INFINITY && most == f32::INFINITY => {
                offset += term[0];
            }
            Some(Step::Multiply(factor)) if factor[0] > 0.0 => {
                for value in [&mut slope, &mut offset, &mut least, &mut most] {
                    *value *= factor[0];
                }
            }
            // One of each, the lower below the upper: then their order is all the same.
            Some(Step::AtLeast(value)) if least == f32::NEG_INFINITY && value <= most => {
                least = value;
            }
            Some(Step::AtMost(value)) if most == f32::INFINITY && least <= value => most = value,
            _ => return Ok(None),
        }
        let Some(next) = model.single_succ(at)? else { return Ok(None) };
        (before, at) = (at, next.id);
    }
    Ok(None)
}
