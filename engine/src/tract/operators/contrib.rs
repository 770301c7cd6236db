//! ONNX Runtime's own operators that are not written with ONNX's (`contrib`), as ExpandDims,
//! and parts of those that are, as the masks that its Attention takes.

use std::mem;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::math::add;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, built, checked_axis, checked_len, expect_datum, integers_of,
};
use super::theirs::Wiring;
use super::{TRANSPOSED, theirs};
use crate::tract::contrib::{DOMAIN, MASK};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert(MASK, mask);
    operators.insert(TRANSPOSED, |_, _| Ok((expand(Transposed), Vec::new())));
    operators.insert("BiasGelu", |context, node| gelu(context, node, 2));
    operators.insert("ExpandDims", |_, node| built(node, ExpandDims));
    operators.insert("FastGelu", |context, node| gelu(context, node, 1));
    operators.insert("QuickGelu", |context, node| gelu(context, node, 1));
    operators.insert("RotaryEmbedding", rotary_embedding);
}

/// tract's, which takes a place for each row; ONNX Runtime's own also takes that of the first alone.
fn rotary_embedding(context: &ParsingContext, node: &NodeProto) -> Built {
    match node.domain == DOMAIN {
        true => theirs::rewired(context, node, Rotary),
        false => theirs::built(context, node),
    }
}

#[derive(Debug, Clone)]
struct Rotary;

impl Wiring for Rotary {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let &[x, places, cosines, sines] = inputs else {
            bail!("expected 4 inputs, got {}", inputs.len())
        };
        let (x_fact, places_fact) = (model.outlet_fact(x)?, model.outlet_fact(places)?);
        if places_fact.rank() == 2 {
            return inner.wire(prefix, model, inputs);
        }
        let shape = &places_fact.shape;
        ensure!(
            shape.len() == 1 && shape[0].is_one(),
            "position_ids {shape:?}, expected [1] or two axes"
        );
        let rows = x_fact.shape[x_fact.rank().saturating_sub(2)].as_i64();
        let rows = rows.context("position_ids of one place for rows of a free number")?;
        let rows = tensor1(&(0..rows).collect::<Vec<_>>());
        let rows = rows.broadcast_into_rank(2)?;
        let rows = model.add_const(format!("{prefix}.rows"), rows)?;
        let first = model.wire_node(format!("{prefix}.first"), AxisOp::Add(0), &[places])?[0];
        let places = model.wire_node(format!("{prefix}.places"), add(), &[first, rows])?[0];
        inner.wire(prefix, model, &[x, places, cosines, sines])
    }
}

/// tract's, which takes its first inputs for given.
fn gelu(context: &ParsingContext, node: &NodeProto, least: usize) -> Built {
    let given = node.input.iter().filter(|name| !name.is_empty()).count();
    ensure!(given >= least, "expected {least} inputs or more, got {given}");
    theirs::built(context, node)
}

/// What is added to the scores of hidden keys, shaped \[batch or 1, 1, queries, keys\], from queries,
/// keys, a mask, and the past keys, of which either may be left out.
#[derive(Debug)]
struct AttentionMask {
    filter: f32,
    is_causal: bool,
    has_mask: bool,
    has_past: bool,
}

/// Infinity, to ONNX Runtime's own operators: a query that sees no key gets the mean of what is so
/// hidden. ONNX's operator would give zeros for the least number itself.
const HIDDEN: f32 = f32::MIN.next_up();

fn mask(_context: &ParsingContext, node: &NodeProto) -> Built {
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    let filter = node.get_attr_opt::<f32>("mask_filter_value")?.unwrap_or(-10_000.0);
    let is_causal = node.get_attr_opt::<i64>("unidirectional")?.unwrap_or(0) != 0;
    let (has_mask, has_past) = (given(2), given(3));
    let filter = filter.max(HIDDEN);
    built(node, AttentionMask { filter, is_causal, has_mask, has_past })
}

impl AttentionMask {
    /// The mask and the past keys of what comes after queries and keys.
    fn rest<'a, T>(&self, mut rest: &'a [T]) -> TractResult<[Option<&'a T>; 2]> {
        let mut next = |is_given: bool| is_given.then(|| rest.split_off_first()).flatten();
        let taken = [next(self.has_mask), next(self.has_past)];
        let wanted = [self.has_mask, self.has_past];
        ensure!(taken.map(|it| it.is_some()) == wanted && rest.is_empty(), "got other inputs");
        Ok(taken)
    }

    /// Batch, queries and keys.
    fn sizes<D: Clone + std::ops::Add<Output = D>>(
        queries: &[D],
        keys: &[D],
        past: Option<&[D]>,
    ) -> TractResult<[D; 3]> {
        let ([batch, queries, _], [_, keys, _]) = (queries, keys) else {
            bail!("queries of rank {} and keys of rank {}", queries.len(), keys.len());
        };
        let keys = match past {
            None => keys.clone(),
            Some([_, _, past, _]) => past.clone() + keys.clone(),
            Some(past) => bail!("past keys of rank {}", past.len()),
        };
        Ok([batch.clone(), queries.clone(), keys])
    }

    /// # Errors
    /// A mask of a shape that is none of those.
    fn seen<'a>(
        [batch, queries, keys]: [usize; 3],
        mask: &'a [i64],
        shape: &[usize],
    ) -> TractResult<Seen<'a>> {
        Ok(match *shape {
            [length] if length == batch || length == 3 * batch + 2 => Seen::Until(mask),
            [length] if length == 2 * batch => Seen::Between(&mask[..batch], &mask[batch..]),
            [_, 1] => Seen::All,
            [rows, columns] if (rows, columns) == (batch, keys) => Seen::Where(mask, [keys, 0]),
            [rows, seen, columns] if (rows, seen, columns) == (batch, queries, keys) => {
                Seen::Where(mask, [queries * keys, keys])
            }
            _ => bail!("a mask of {shape:?} for {batch} rows of {queries} queries and {keys} keys"),
        })
    }
}

/// The keys that are not hidden.
enum Seen<'a> {
    All,
    /// Those before a row's end, after which there may be more numbers.
    Until(&'a [i64]),
    /// Those from a row's start, the second ones, until its end.
    Between(&'a [i64], &'a [i64]),
    /// Those whose number is above zero, which lies this far on for each row and query.
    Where(&'a [i64], [usize; 2]),
}

impl Seen<'_> {
    fn contains(&self, row: usize, query: usize, key: usize) -> bool {
        match self {
            Self::All => true,
            Self::Until(ends) => (key as i64) < ends[row],
            Self::Between(ends, starts) => (starts[row]..ends[row]).contains(&(key as i64)),
            Self::Where(mask, [rows, queries]) => mask[row * rows + query * queries + key] > 0,
        }
    }
}

impl Kernel for AttentionMask {
    fn name(&self) -> &'static str {
        "AttentionMask"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [q, k, rest @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let [mask, past] = self.rest(rest)?;
        expect_datum(q, &[DatumType::F32, DatumType::F16])?;
        if let Some(mask) = mask {
            expect_datum(mask, &[DatumType::I32, DatumType::I64])?;
        }
        let past = past.map(|past| &*past.shape);
        let [batch, queries, keys] = Self::sizes(&q.shape, &k.shape, past)?;
        let batch = if self.has_mask { batch } else { 1.to_dim() };
        Ok(tvec![Form::new(q.datum, [batch, 1.to_dim(), queries, keys])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [q, k, rest @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let [mask, past] = self.rest(rest)?;
        let sizes = Self::sizes(q.shape(), k.shape(), past.map(|past| past.shape()))?;
        let values = mask.map(|mask| integers_of(mask)).transpose()?.unwrap_or_default();
        let seen = match mask {
            Some(mask) => Self::seen(sizes, &values, mask.shape())?,
            None => Seen::All,
        };
        let [batch, queries, keys] = sizes;
        let shape = [if self.has_mask { batch } else { 1 }, 1, queries, keys];
        let mut addends = Vec::with_capacity(checked_len(&shape)?);
        let past = past.map_or(0, |past| past.shape()[2]);
        for row in 0..shape[0] {
            for query in 0..queries {
                // ONNX Runtime lets the last query see all keys, which may be more than queries.
                let is_last = query + 1 == queries;
                let end = if self.is_causal && !is_last { past + query + 1 } else { keys };
                addends.extend((0..keys).map(|key| match seen.contains(row, query, key) {
                    _ if key >= end => HIDDEN,
                    true => 0.0,
                    false => self.filter,
                }));
            }
        }
        let addends = tract_ndarray::ArrayD::from_shape_vec(&shape[..], addends)?;
        Ok(tvec![addends.into_tensor().cast_to_dt(q.datum_type())?.into_owned()])
    }
}

/// With its last two axes swapped; a vector as it is.
#[derive(Debug, Clone)]
struct Transposed;

impl Expansion for Transposed {
    fn name(&self) -> StaticName {
        "Transposed".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].rank, &outputs[0].rank)?;
        solver.given(&inputs[0].shape, move |solver, mut shape| {
            if let [.., rows, columns] = &mut shape[..] {
                mem::swap(rows, columns);
            }
            solver.equals(&outputs[0].shape, shape)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        match model.outlet_fact(inputs[0])?.rank() {
            0 | 1 => Ok(inputs.into()),
            rank => model.wire_node(prefix, AxisOp::Move(rank - 2, rank - 1), inputs),
        }
    }
}

/// Unsqueeze, as it was called once.
#[derive(Debug)]
struct ExpandDims;

impl ExpandDims {
    fn expand<D: Clone>(shape: &[D], axis: &Tensor, one: D) -> TractResult<TVec<D>> {
        let &[axis] = &*integers_of(axis)? else { bail!("expected one axis") };
        let mut shape: TVec<D> = shape.into();
        shape.insert(checked_axis(axis, shape.len() + 1)?, one);
        Ok(shape)
    }
}

impl Kernel for ExpandDims {
    fn name(&self) -> &'static str {
        "ExpandDims"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, axis] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let axis = axis.constant.as_ref().context("the axis is not known")?;
        Ok(tvec![Form::new(input.datum, Self::expand(&input.shape, axis, 1.to_dim())?)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, axis] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let shape = Self::expand(input.shape(), axis, 1)?;
        Ok(tvec![(**input).clone().into_shape(&shape)?])
    }
}
