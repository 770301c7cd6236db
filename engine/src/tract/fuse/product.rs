//! Products of matrices in single precision, one or many, with what follows them. tract writes
//! them as sums over named axes; those that are a matrix product become one of ours.

use std::cell::RefCell;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::einsum::EinSum;

use wisp_kernels::{
    Activation, Epilogue, Level, Packed, ResidualOrder, Scratch, View, linear, product,
};

use super::chain::{Chain, apply_post};
use super::weights::PackedWeights;

/// Of a result that takes what follows it: a bias is held for each.
const MAX_COLUMNS: usize = 1 << 24;

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, Scratch)> = RefCell::default();
}

/// How far a step along an axis goes in the left operand, the right one and the result.
type Steps = [usize; 3];

/// One axis, or several that lie in each tensor as if they were one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    size: usize,
    steps: Steps,
}

/// `c[m, n] = Σ a[m, k] b[k, n]`, for each of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    batch: Vec<Span>,
    m: Span,
    n: Span,
    k: Span,
    /// Whether the operands change places.
    swapped: bool,
}

#[derive(Debug, Clone)]
struct FusedProduct {
    plan: Plan,
    /// The right operand, where it is constant.
    weights: Option<Arc<Packed>>,
    /// By column.
    bias: Option<Arc<[f32]>>,
    order: ResidualOrder,
    activation: Activation,
    post: Option<(f32, f32)>,
    output: TVec<usize>,
}

/// Replaces all products that our kernels can do.
pub(super) fn fuse(model: &mut TypedModel, packed: &PackedWeights) -> TractResult<()> {
    for id in model.eval_order()? {
        if let Some(patch) = fuse_one(model, id, packed)? {
            patch.apply(model)?;
        }
    }
    model.compact()
}

fn fuse_one(
    model: &TypedModel,
    id: usize,
    packed: &PackedWeights,
) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let Some(plan) = plan(model, node)? else { return Ok(None) };
    let (left, right) = match plan.swapped {
        true => (node.inputs[1], node.inputs[0]),
        false => (node.inputs[0], node.inputs[1]),
    };
    let weights = model.outlet_fact(right)?.konst.clone().filter(|_| plan.batch.is_empty());
    let weights = match weights {
        Some(konst) => {
            let data = konst.try_as_plain_ram()?.as_slice::<f32>()?;
            let (n, k) = (plan.n, plan.k);
            let pack = || Packed::new(n.size, k.size, data, (n.steps[1], k.steps[1])).ok();
            let Some(weights) = packed.get(&(n, k), data, pack) else { return Ok(None) };
            Some(weights)
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
    let Some(output) = model.node(last).outputs[0].fact.shape.as_concrete() else {
        return Ok(None);
    };
    let mut patch = TypedModelPatch::default();
    let mut inputs = tvec!(patch.tap_model(model, left)?);
    if weights.is_none() {
        inputs.push(patch.tap_model(model, right)?);
    }
    if let Some(residual) = chain.as_ref().and_then(|chain| chain.residual) {
        inputs.push(patch.tap_model(model, residual)?);
    }
    let mut fused = FusedProduct {
        plan,
        weights,
        bias: None,
        order: ResidualOrder::BeforeActivation,
        activation: Activation::None,
        post: None,
        output: output.into(),
    };
    if let Some(chain) = chain {
        fused.bias = chain.bias.iter().any(|bias| *bias != 0.0).then(|| chain.bias.into());
        (fused.order, fused.activation, fused.post) = (chain.order, chain.activation, chain.post);
    }
    let wired = patch.wire_node(&node.name, fused, &inputs)?;
    patch.shunt_outside(model, last.into(), wired[0])?;
    Ok(Some(patch))
}

/// Sees a sum over axes as a product of matrices, where it is one that our kernels can do.
fn plan(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Plan>> {
    let Some(op) = node.op_as::<EinSum>() else { return Ok(None) };
    if op.q_params.is_some() || op.operating_dt != DatumType::F32 || node.inputs.len() != 2 {
        return Ok(None);
    }
    let facts = [
        model.outlet_fact(node.inputs[0])?,
        model.outlet_fact(node.inputs[1])?,
        &node.outputs[0].fact,
    ];
    if facts.iter().any(|fact| fact.datum_type != DatumType::F32) {
        return Ok(None);
    }
    let Some(shapes) =
        facts.iter().map(|fact| fact.shape.as_concrete()).collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    let steps: Vec<Vec<usize>> = shapes.iter().map(|shape| row_major(shape)).collect();
    let (mut batch, mut ms, mut ns, mut ks) = (vec![], vec![], vec![], vec![]);
    for axis in op.axes.iter_all_axes() {
        let places = [&axis.inputs[0], &axis.inputs[1], &axis.outputs[0]];
        if places.iter().any(|places| places.len() > 1) {
            return Ok(None);
        }
        let places = places.map(|places| places.first().copied());
        let sizes = [0, 1, 2].map(|tensor| places[tensor].map(|at| shapes[tensor][at]));
        let Some(size) = sizes.into_iter().flatten().max() else { continue };
        if sizes.into_iter().flatten().any(|other| other != size) {
            return Ok(None);
        }
        if size == 1 {
            continue;
        }
        let steps = [0, 1, 2].map(|tensor| places[tensor].map_or(0, |at| steps[tensor][at]));
        let span = Span { size, steps };
        match places.map(|place| place.is_some()) {
            [true, true, true] => batch.push(span),
            [true, false, true] => ms.push(span),
            [false, true, true] => ns.push(span),
            [true, true, false] => ks.push(span),
            _ => return Ok(None),
        }
    }
    let [ms, ns] = [ms, ns].map(|spans| merge(spans, 2));
    let ks = merge(ks, 0);
    Ok(arrange(batch, ms, ns, ks))
}

/// Which spans are the matrices', and which are looped over.
fn arrange(
    mut batch: Vec<Span>,
    mut ms: Vec<Span>,
    mut ns: Vec<Span>,
    ks: Vec<Span>,
) -> Option<Plan> {
    let one = Span { size: 1, steps: [0; 3] };
    let k = match ks[..] {
        [] => one,
        [k] => k,
        _ => return None,
    };
    // The last in the result is the matrix's; what does not lie with it is looped over.
    let mut m = ms.pop().unwrap_or(one);
    let mut n = ns.pop().unwrap_or(one);
    batch.extend(ms);
    batch.extend(ns);
    let swapped = n.steps[2] != 1 && m.steps[2] == 1;
    if swapped {
        let swap = |span: &mut Span| span.steps.swap(0, 1);
        std::mem::swap(&mut m, &mut n);
        batch.iter_mut().for_each(swap);
        swap(&mut m);
        swap(&mut n);
    }
    let mut k = k;
    if swapped {
        k.steps.swap(0, 1);
    }
    let in_rows = n.size == 1 || n.steps[2] == 1;
    in_rows.then_some(Plan { batch, m, n, k, swapped })
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        steps[at - 1] = steps[at] * shape[at];
    }
    steps
}

/// Joins spans that follow each other in all tensors, outermost first as `tensor` has them.
fn merge(mut spans: Vec<Span>, tensor: usize) -> Vec<Span> {
    spans.sort_by_key(|span| std::cmp::Reverse(span.steps[tensor]));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(outer)
                if outer
                    .steps
                    .iter()
                    .zip(span.steps)
                    .all(|(&outer, inner)| outer == inner * span.size) =>
            {
                *outer = Span { size: outer.size * span.size, steps: span.steps };
            }
            _ => merged.push(span),
        }
    }
    merged
}

impl PartialEq for FusedProduct {
    fn eq(&self, other: &Self) -> bool {
        let weights = |op: &Self| op.weights.as_ref().map(Arc::as_ptr);
        self.plan == other.plan
            && weights(self) == weights(other)
            && self.bias == other.bias
            && (self.order, self.activation, self.post)
                == (other.order, other.activation, other.post)
            && self.output == other.output
    }
}

impl Eq for FusedProduct {}

impl Op for FusedProduct {
    fn name(&self) -> StaticName {
        "FusedProduct".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?} {:?}", self.plan, self.activation)])
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
        // SAFETY: the kernels write every element.
        let mut output = unsafe { Tensor::uninitialized::<f32>(&self.output)? };
        let mut plain = output.try_as_plain_ram_mut()?;
        let y = plain.as_slice_mut::<f32>()?;
        let Plan { batch, m, n, k, .. } = &self.plan;
        let a = |at: usize| View {
            data: slices[0].get(at..).unwrap_or_default(),
            row_step: m.steps[0],
            column_step: k.steps[0],
        };
        if let Some(weights) = &self.weights {
            linear(Level::best(), m.size, a(0), weights, y, &epilogue)?;
            apply_post(self.post, y);
            return Ok(tvec!(output.into_tvalue()));
        }
        SCRATCH.with_borrow_mut(|(rows, scratch)| {
            for at in starts(batch) {
                let b = View {
                    data: slices[1].get(at[1]..).unwrap_or_default(),
                    row_step: k.steps[1],
                    column_step: n.steps[1],
                };
                let sizes = (m.size, k.size, n.size);
                let c = y.get_mut(at[2]..).unwrap_or_default();
                if m.size == 1 || m.steps[2] == n.size {
                    let c = &mut c[..m.size * n.size];
                    product(Level::best(), sizes, a(at[0]), b, c, &epilogue, scratch)?;
                    continue;
                }
                rows.resize(m.size * n.size, 0.0);
                product(Level::best(), sizes, a(at[0]), b, rows, &epilogue, scratch)?;
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

/// Where each product of a batch begins in the three tensors.
fn starts(batch: &[Span]) -> Vec<Steps> {
    let mut starts = vec![[0; 3]];
    for span in batch {
        let along = |start: &Steps| {
            let start = *start;
            let steps = span.steps;
            (0..span.size).map(move |i| [0, 1, 2].map(|tensor| start[tensor] + i * steps[tensor]))
        };
        starts = starts.iter().flat_map(along).collect();
    }
    starts
}

impl TypedOp for FusedProduct {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.output)))
    }

    as_op!();
}
