//! LinearAttention: a state of sums of keys by values, which decays, is corrected, or both, and is read by
//! queries.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, built, checked_len, expect_datum, expect_shape, forms_of, singles,
};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("LinearAttention", linear_attention);
}

/// Queries, keys and values \[batch, times, heads × width\]; maybe the state before, decays, and rates.
#[derive(Debug)]
struct LinearAttention {
    query_heads: usize,
    /// Of keys and values; as many queries' read each.
    heads: usize,
    scale: Option<f32>,
    has_past: bool,
    decays: bool,
    corrects: bool,
}

/// Heads without a width may be as many as an attribute says, and sizes are counted in them.
const MAX_HEADS: usize = 1 << 24;

fn linear_attention(_context: &ParsingContext, node: &NodeProto) -> Built {
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    ensure!((0..3).all(given), "queries, keys or values are not given");
    let heads = |name: &str| -> TractResult<usize> {
        let heads = node.get_attr::<i64>(name)?;
        let counted = usize::try_from(heads).ok().filter(|heads| (1..=MAX_HEADS).contains(heads));
        counted.with_context(|| format!("{name} {heads}, expected 1 to {MAX_HEADS}"))
    };
    let (query_heads, heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    let is_multiple = query_heads.is_multiple_of(heads);
    ensure!(is_multiple, "{query_heads} heads of queries for {heads} of keys, expected a multiple");
    let rule = node.get_attr_opt::<&str>("update_rule")?.unwrap_or("gated_delta");
    let (decays, corrects) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => bail!("unknown update_rule {other:?}"),
    };
    for (name, index, is_taken) in [("decay", 4, decays), ("beta", 5, corrects)] {
        let how = if is_taken { "needs" } else { "takes no" };
        ensure!(is_taken == given(index), "update_rule {rule:?} {how} {name}");
    }
    let scale = node.get_attr_opt::<f32>("scale")?.filter(|&scale| scale != 0.0);
    let has_past = given(3);
    built(node, LinearAttention { query_heads, heads, scale, has_past, decays, corrects })
}

/// What a node takes, by what it is.
struct Taken<'a, T> {
    /// Queries, keys and values.
    given: [&'a T; 3],
    past: Option<&'a T>,
    decay: Option<&'a T>,
    rate: Option<&'a T>,
}

impl LinearAttention {
    fn taken<'a, T>(&self, inputs: &'a [T]) -> TractResult<Taken<'a, T>> {
        let [query, key, value, rest @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let flags = [self.has_past, self.decays, self.corrects];
        let wanted = flags.into_iter().filter(|&flag| flag).count();
        ensure!(rest.len() == wanted, "got {} inputs, expected {}", inputs.len(), 3 + wanted);
        let mut rest = rest.iter();
        let [past, decay, rate] = flags.map(|flag| if flag { rest.next() } else { None });
        Ok(Taken { given: [query, key, value], past, decay, rate })
    }
}

impl Kernel for LinearAttention {
    fn name(&self) -> &'static str {
        "LinearAttention"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        inputs.iter().try_for_each(|input| expect_datum(input, &[DatumType::F32]))?;
        let Taken { given: [query, key, value], past, decay, rate } = self.taken(inputs)?;
        let ([batch, times, queries], [_, _, values]) = (&*query.shape, &*value.shape) else {
            bail!(
                "queries of rank {} and values of rank {}, expected 3 and 3",
                query.shape.len(),
                value.shape.len()
            );
        };
        let heads = self.heads.to_dim();
        let width = of_heads("queries", queries, self.query_heads)?;
        let depth = of_heads("values", values, self.heads)?;
        let each = |size: &TDim| [batch.clone(), times.clone(), size.clone()];
        let keys = heads.clone() * &width;
        expect_shape("keys", &key.shape, &each(&keys))?;
        expect_shape("values", &value.shape, &each(values))?;
        if let Some(decay) = decay {
            let is_of_head = decay.shape.last() == Some(&heads);
            expect_shape("decays", &decay.shape, &each(if is_of_head { &heads } else { &keys }))?;
        }
        if let Some(rate) = rate {
            let one = 1.to_dim();
            let is_of_all = rate.shape.last() == Some(&one);
            expect_shape("rates", &rate.shape, &each(if is_of_all { &one } else { &heads }))?;
        }
        let read = each(&(depth.clone() * self.query_heads));
        let state = [batch.clone(), heads.clone(), width, depth];
        if let Some(past) = past {
            expect_shape("a state", &past.shape, &state)?;
        }
        Ok(tvec![Form::new(DatumType::F32, read), Form::new(DatumType::F32, state)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        self.outputs(&forms_of(inputs))?;
        let taken = self.taken(inputs)?;
        let sizes = self.sizes(&taken)?;
        let Sizes { batch, times, width, depth, .. } = sizes;
        let form = [batch, self.heads, width, depth];
        let shape = [batch, times, self.query_heads * depth];
        checked_len(&form)?;
        checked_len(&shape)?;
        let mut states = match taken.past {
            Some(past) => (**past).clone(),
            None => Tensor::zero::<f32>(&form)?,
        };
        let mut read = Tensor::zero::<f32>(&shape)?;
        let [query, key, value] = taken.given;
        let run = Run {
            op: self,
            sizes,
            query: singles(Some(query))?,
            key: singles(Some(key))?,
            value: singles(Some(value))?,
            decay: singles(taken.decay)?,
            rate: singles(taken.rate)?,
        };
        let (mut kept, mut rows) = (states.try_as_plain_ram_mut()?, read.try_as_plain_ram_mut()?);
        let (kept, rows) = (kept.as_slice_mut::<f32>()?, rows.as_slice_mut::<f32>()?);
        // Of nothing, nothing is read.
        for (index, state) in kept.chunks_exact_mut((width * depth).max(1)).enumerate() {
            run.head([index / self.heads, index % self.heads], state, rows);
        }
        Ok(tvec![read, states])
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    times: usize,
    /// Of a query or key, and of a value.
    width: usize,
    depth: usize,
    /// Decays of a head at a time, and heads that have rates of their own.
    decays: usize,
    rates: usize,
}

impl LinearAttention {
    /// Of tensors that fit.
    fn sizes(&self, taken: &Taken<'_, TValue>) -> TractResult<Sizes> {
        let [query, _, value] = taken.given;
        let (&[batch, times, queries], &[_, _, values]) = (query.shape(), value.shape()) else {
            bail!("queries of {:?} and values of {:?}", query.shape(), value.shape());
        };
        let (width, depth) = (queries / self.query_heads, values / self.heads);
        let last = |tensor: Option<&TValue>| {
            tensor.and_then(|tensor| tensor.shape().last().copied()).unwrap_or_default()
        };
        let decays = if last(taken.decay) == self.heads { 1 } else { width };
        Ok(Sizes { batch, times, width, depth, decays, rates: last(taken.rate) })
    }
}

/// Of each head.
///
/// # Errors
/// They are not as many in each.
fn of_heads(name: &str, size: &TDim, heads: usize) -> TractResult<TDim> {
    let is_whole = size.to_usize().ok().is_none_or(|size| size.is_multiple_of(heads));
    ensure!(is_whole, "{name} of {size} in {heads} heads");
    Ok(size.clone() / heads)
}

struct Run<'a> {
    op: &'a LinearAttention,
    sizes: Sizes,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    decay: &'a [f32],
    rate: &'a [f32],
}

impl Run<'_> {
    /// All times of a head, whose state is \[width, depth\]; what is read goes where it belongs in all
    /// that is.
    fn head(&self, [batch, head]: [usize; 2], state: &mut [f32], read: &mut [f32]) {
        let Sizes { times, width, depth, decays, rates, .. } = self.sizes;
        let (heads, queries) = (self.op.heads, self.op.query_heads);
        let scale = self.op.scale.unwrap_or_else(|| (width as f32).sqrt().recip());
        let mut written = vec![0.0; depth];
        for time in batch * times..(batch + 1) * times {
            let key = &self.key[(time * heads + head) * width..][..width];
            let value = &self.value[(time * heads + head) * depth..][..depth];
            if self.op.decays {
                let decay = &self.decay[(time * heads + head) * decays..][..decays];
                for (row, decay) in state.chunks_exact_mut(depth).zip(decay.iter().cycle()) {
                    let kept = decay.exp();
                    row.iter_mut().for_each(|it| *it *= kept);
                }
            }
            written.copy_from_slice(value);
            if self.op.corrects {
                let rate = self.rate[time * rates + head % rates];
                for (row, key) in state.chunks_exact(depth).zip(key) {
                    written.iter_mut().zip(row).for_each(|(it, state)| *it -= state * key);
                }
                written.iter_mut().for_each(|it| *it *= rate);
            }
            for (row, key) in state.chunks_exact_mut(depth).zip(key) {
                row.iter_mut().zip(&written).for_each(|(it, value)| *it += key * value);
            }
            let group = queries / heads;
            for query_head in head * group..(head + 1) * group {
                let at = time * queries + query_head;
                let query = &self.query[at * width..][..width];
                let read = &mut read[at * depth..][..depth];
                for (row, query) in state.chunks_exact(depth).zip(query) {
                    read.iter_mut().zip(row).for_each(|(it, state)| *it += query * state);
                }
                read.iter_mut().for_each(|it| *it *= scale);
            }
        }
    }
}
