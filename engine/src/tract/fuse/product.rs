//! Products of matrices in single precision, one or many, with what follows them. tract writes
//! them as sums over named axes; those that are a matrix product become one of ours. Where sizes
//! are free, what lies where is found anew in each run.

use std::cell::RefCell;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::einsum::EinSum;

use wisp_kernels::{
    Activation, Epilogue, Layout, Level, Packed, ResidualOrder, Scratch, Steps, View, Whole,
    linear, product,
};

use super::chain::{Chain, apply_post};
use super::conv::steps_after;
use super::quantized::grid_of;
use super::spans::{Places, Plan};
use super::weights::PackedWeights;
use crate::tract::compiled::{Reader, Stored, Writer, stored_struct};
use crate::tract::team::OfThread;

/// Of a result that takes what follows it: a bias is held for each.
const MAX_COLUMNS: usize = 1 << 24;

thread_local! {
    /// A product that is written in another order.
    static ROWS: RefCell<Vec<f32>> = RefCell::default();
    /// What kernels need for the time of one call.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A constant operand.
#[derive(Debug)]
enum Weights {
    Floats(Packed),
    Whole(Whole),
}

impl Weights {
    /// Columns and their length.
    fn sizes(&self) -> (usize, usize) {
        match self {
            Weights::Floats(weights) => (weights.extent(), weights.k()),
            Weights::Whole(weights) => (weights.extent(), weights.k()),
        }
    }
}

impl Stored for Weights {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        match self {
            Weights::Floats(weights) => to.variant(0, weights),
            Weights::Whole(weights) => to.variant(1, weights),
        }
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Weights::Floats(Stored::take(from)?),
            1 => Weights::Whole(Stored::take(from)?),
            _ => return None,
        })
    }
}

#[derive(Debug, Clone)]
pub(in crate::tract) struct FusedProduct {
    axes: Vec<Places>,
    /// Whether the operands change places.
    swapped: bool,
    /// Where all sizes are known: what lies where, and the result's shape.
    planned: Option<(Plan, TVec<usize>)>,
    /// The right operand, where it is constant, and its shape before it was packed.
    weights: Option<(Arc<Weights>, TVec<usize>)>,
    /// By column.
    bias: Option<Arc<[f32]>>,
    order: ResidualOrder,
    activation: Activation,
    post: Option<(f32, f32)>,
    output: TVec<TDim>,
}

stored_struct!(FusedProduct {
    axes,
    swapped,
    planned,
    weights,
    bias,
    order,
    activation,
    post,
    output
});

/// Replaces a product that our kernels can do.
pub(super) fn fuse(
    model: &TypedModel,
    id: usize,
    packed: &PackedWeights,
) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let Some(axes) = axes(model, node)? else { return Ok(None) };
    let facts = [
        model.outlet_fact(node.inputs[0])?,
        model.outlet_fact(node.inputs[1])?,
        &node.outputs[0].fact,
    ];
    let is_known = facts.iter().all(|fact| fact.shape.is_concrete());
    let Some(shapes) = sizes(facts) else { return Ok(None) };
    let plan = Plan::of(&axes, [&shapes[0], &shapes[1], &shapes[2]]);
    let Some(plan) = plan else { return Ok(None) };
    let (left, right) = match plan.swapped {
        true => (node.inputs[1], node.inputs[0]),
        false => (node.inputs[0], node.inputs[1]),
    };
    let weights = model.outlet_fact(right)?.konst.clone().filter(|_| plan.batch.is_empty());
    let weights = match weights {
        Some(konst) => {
            let data = konst.try_as_plain_ram()?.as_slice::<f32>()?;
            let (n, k) = (plan.n, plan.k);
            // Bytes are made of rows whose values have no gaps.
            let grid = match Level::best().favours_bytes(k.size) && k.steps[0] == 1 {
                true => grid_of(model, left)?,
                false => None,
            };
            let layout = Layout { sizes: [n.size, k.size, 1], steps: [n.steps[1], k.steps[1], 0] };
            let pack = || {
                let whole = grid.and_then(|grid| Whole::new(layout, data, grid));
                let floats = || Packed::new(n.size, k.size, data, (n.steps[1], k.steps[1])).ok();
                whole.map(Weights::Whole).or_else(|| floats().map(Weights::Floats))
            };
            let Some(weights) = packed.get(&(n, k, grid), data, pack) else { return Ok(None) };
            Some((weights, konst.shape().into()))
        }
        None => None,
    };
    // What follows is by column of the whole result, or not ours to do.
    let shape = &node.outputs[0].fact.shape;
    let whole = plan.batch.is_empty()
        && plan.n.size <= MAX_COLUMNS
        && shape.last() == Some(&plan.n.size.to_dim());
    let chain = match whole {
        true => {
            let bias = vec![0.0; plan.n.size];
            let chain = Chain::follow(model, id, shape.len() - 1, bias)?;
            // A factor would have to go into the weights.
            chain.scale.is_none().then_some(chain)
        }
        false => None,
    };
    let last = chain.as_ref().map_or(id, |chain| chain.last);
    let shape = &model.node(last).outputs[0].fact.shape;
    let known: Option<TVec<usize>> = shape.as_concrete().filter(|_| is_known).map(Into::into);
    if is_known != known.is_some() {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let mut inputs = tvec!(patch.tap_model(model, left)?);
    if weights.is_none() {
        inputs.push(patch.tap_model(model, right)?);
    }
    if let Some(residual) = chain.as_ref().and_then(|chain| chain.residual) {
        inputs.push(patch.tap_model(model, residual)?);
    }
    let mut fused = FusedProduct {
        axes,
        swapped: plan.swapped,
        planned: known.map(|output| (plan, output)),
        weights,
        bias: None,
        order: ResidualOrder::BeforeActivation,
        activation: Activation::None,
        post: None,
        output: shape.to_tvec(),
    };
    if let Some(chain) = chain {
        fused.bias = chain.bias.iter().any(|bias| *bias != 0.0).then(|| chain.bias.into());
        (fused.order, fused.activation, fused.post) = (chain.order, chain.activation, chain.post);
    }
    let wired = patch.wire_node(&node.name, fused, &inputs)?;
    patch.shunt_outside(model, last.into(), wired[0])?;
    Ok(Some(patch))
}

/// The axes of a sum that may be a product of matrices.
pub(super) fn axes(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Vec<Places>>> {
    let Some(op) = node.op_as::<EinSum>() else { return Ok(None) };
    if op.q_params.is_some() || op.operating_dt != DatumType::F32 || node.inputs.len() != 2 {
        return Ok(None);
    }
    let (inputs, outputs) = model.node_facts(node.id)?;
    if inputs.iter().chain(&outputs).any(|fact| fact.datum_type != DatumType::F32) {
        return Ok(None);
    }
    let axes = op.axes.iter_all_axes().map(|axis| {
        let places = [&axis.inputs[0], &axis.inputs[1], &axis.outputs[0]];
        let once = places.iter().all(|places| places.len() <= 1);
        once.then(|| places.map(|places| places.first().copied()))
    });
    Ok(axes.collect())
}

/// The tensors' sizes, or some that stand for those that are free: primes, so that nothing fits
/// together by chance.
fn sizes(facts: [&TypedFact; 3]) -> Option<[TVec<usize>; 3]> {
    const PRIMES: [i64; 6] = [1009, 1013, 1019, 1021, 1031, 1033];
    let dims = || facts.iter().flat_map(|fact| fact.shape.iter());
    let mut symbols: Vec<Symbol> = dims().flat_map(|dim| dim.symbols()).collect();
    symbols.sort();
    symbols.dedup();
    if symbols.len() > PRIMES.len() {
        return None;
    }
    let mut values = SymbolValues::default();
    symbols.iter().zip(PRIMES).for_each(|(symbol, prime)| values.set(symbol, prime));
    let sizes = |fact: &TypedFact| -> Option<TVec<usize>> {
        fact.shape.iter().map(|dim| dim.eval(&values).to_usize().ok()).collect()
    };
    let [left, right, result] = facts.map(sizes);
    Some([left?, right?, result?])
}

impl FusedProduct {
    /// The steps that its values are rounded to, if they are.
    pub(super) fn steps(&self) -> Option<Steps> {
        steps_after(self.activation, self.order, self.post)
    }

    /// What lies where for inputs of these shapes, and the shape of the result.
    fn plan_for(&self, inputs: &[TValue]) -> Option<(Plan, TVec<usize>)> {
        let right = self.weights.as_ref().map(|(_, shape)| &shape[..]);
        let right = right.or_else(|| Some(inputs.get(1)?.shape()))?;
        let mut shapes = [inputs.first()?.shape(), right];
        if self.swapped {
            shapes.swap(0, 1);
        }
        let mut output = tvec![1; self.output.len()];
        for places in &self.axes {
            let size = |tensor: usize| shapes[tensor].get(places[tensor]?).copied();
            if let Some(at) = places[2] {
                *output.get_mut(at)? = size(0).or_else(|| size(1))?;
            }
        }
        let plan = Plan::of(&self.axes, [shapes[0], shapes[1], &output])?;
        let fits = self.weights.as_ref().is_none_or(|(weights, _)| {
            plan.batch.is_empty() && weights.sizes() == (plan.n.size, plan.k.size)
        });
        (fits && plan.swapped == self.swapped).then_some((plan, output))
    }
}

impl PartialEq for FusedProduct {
    fn eq(&self, other: &Self) -> bool {
        fn weights(op: &FusedProduct) -> Option<(*const Weights, &[usize])> {
            op.weights.as_ref().map(|(weights, shape)| (Arc::as_ptr(weights), &shape[..]))
        }
        weights(self) == weights(other)
            && (&self.axes, self.swapped) == (&other.axes, other.swapped)
            && (&self.planned, &self.output) == (&other.planned, &other.output)
            && self.bias == other.bias
            && (self.order, self.activation, self.post)
                == (other.order, other.activation, other.post)
    }
}

impl Eq for FusedProduct {}

impl Op for FusedProduct {
    fn name(&self) -> StaticName {
        "FusedProduct".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?} {:?}", self.planned, self.activation)])
    }

    op_as_typed_op!();
}

impl EvalOp for FusedProduct {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let plain = inputs.iter().map(|input| input.try_as_plain_ram());
        let plain = plain.collect::<TractResult<TVec<_>>>()?;
        let slices = plain.iter().map(|input| input.as_slice::<f32>());
        let slices = slices.collect::<TractResult<TVec<&[f32]>>>()?;
        let operands = if self.weights.is_some() { 1 } else { 2 };
        let epilogue = Epilogue {
            bias: self.bias.as_deref(),
            residual: slices.get(operands).copied(),
            order: self.order,
            activation: self.activation,
        };
        let found;
        let (plan, shape) = match &self.planned {
            Some(planned) => planned,
            None => {
                let lies_so = self.plan_for(&inputs);
                found = lies_so.context("a product does not lie for these sizes as it was made")?;
                &found
            }
        };
        // SAFETY: the kernels write every element.
        let mut output = unsafe { Tensor::uninitialized::<f32>(shape)? };
        let mut plain = output.try_as_plain_ram_mut()?;
        let y = plain.as_slice_mut::<f32>()?;
        if y.is_empty() {
            return Ok(tvec!(output.into_tvalue()));
        }
        let Plan { m, n, k, .. } = plan;
        let a = |at: usize| View {
            data: slices[0].get(at..).unwrap_or_default(),
            row_step: m.steps[0],
            column_step: k.steps[0],
        };
        if let Some((weights, _)) = &self.weights {
            let (level, a) = (Level::best(), a(0));
            match &**weights {
                Weights::Floats(weights) => {
                    linear(level, m.size, a, weights, y, &epilogue, &OfThread)?;
                }
                Weights::Whole(weights) => SCRATCH.with_borrow_mut(|scratch| {
                    weights.linear(level, m.size, a, y, &epilogue, scratch, &OfThread)
                })?,
            }
            apply_post(self.post, y);
            return Ok(tvec!(output.into_tvalue()));
        }
        ROWS.with_borrow_mut(|rows| {
            for at in plan.starts() {
                let b = View {
                    data: slices[1].get(at[1]..).unwrap_or_default(),
                    row_step: k.steps[1],
                    column_step: n.steps[1],
                };
                let sizes = (m.size, k.size, n.size);
                let c = y.get_mut(at[2]..).unwrap_or_default();
                if m.size == 1 || m.steps[2] == n.size {
                    let c = &mut c[..m.size * n.size];
                    product(Level::best(), sizes, a(at[0]), b, c, &epilogue, &OfThread)?;
                    continue;
                }
                rows.resize(m.size * n.size, 0.0);
                product(Level::best(), sizes, a(at[0]), b, rows, &epilogue, &OfThread)?;
                for (row, from) in rows.chunks_exact(n.size).enumerate() {
                    c[row * m.steps[2]..][..n.size].copy_from_slice(from);
                }
            }
            TractResult::Ok(())
        })?;
        apply_post(self.post, y);
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FusedProduct {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.output[..])))
    }

    as_op!();
}
