//! Attention (opset 23 on). tract lines the causal mask up with the first key even where there
//! is a past, and adds a boolean mask as numbers: here both become one mask of what to add, and
//! tract's operator does the rest, but for queries that see no key. What tract has not at all is
//! `attend`'s.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::logic::Iff;
use tract_onnx::tract_core::ops::math::{add, max};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::logic::wire_with_rank_broadcast;

use super::super::bodies;
use super::attend::{HIDDEN, Mask, ROWS_UNASKED, Rows, places};
use super::kernel::{Built, Form, Kernel, typed};
use super::linear::dot;
use super::{attend, theirs};

/// The attributes that `attend` reads, and those that tract reads or refuses.
const KNOWN: [&str; 9] = [
    "is_causal",
    "kv_num_heads",
    "left_window_size",
    "q_num_heads",
    "qk_matmul_output_mode",
    "right_window_size",
    "scale",
    "softcap",
    "softmax_precision",
];

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Attention", attention);
}

fn attention(context: &ParsingContext, node: &NodeProto) -> Built {
    let is_standard = matches!(&*node.domain, "" | "ai.onnx");
    ensure!(is_standard, "Attention of domain {} is not served", node.domain);
    // Later versions may add some that change the answer: none is passed over.
    if let Some(other) = node.attribute.iter().find(|other| !KNOWN.contains(&&*other.name)) {
        bail!("Attention's attribute {} is not served", other.name);
    }
    let node = &with_heads(node)?;
    if attend::is_needed(node)? {
        return attend::attend(node);
    }
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    ensure!(given(4) == given(5), "past_key and past_value go together");
    let is_causal = node.get_attr_opt::<i64>("is_causal")?.unwrap_or(0) != 0;
    let (has_mask, has_past) = (given(3), given(4));
    let scale = node.get_attr_opt::<f32>("scale")?;
    let mut inner = node.clone();
    inner.attribute.retain(|attribute| attribute.name != "is_causal");
    if has_mask || is_causal {
        inner.input.resize(inner.input.len().max(4), String::new());
        inner.input[3] = "mask".to_owned();
    }
    let inner = theirs::expansion(context, &inner)?;
    Ok((expand(Attention { inner, is_causal, has_mask, has_past, scale }), Vec::new()))
}

/// The node without numbers of heads that are zero: those are not given.
fn with_heads(node: &NodeProto) -> TractResult<NodeProto> {
    let mut node = node.clone();
    for name in ["q_num_heads", "kv_num_heads"] {
        let heads = node.get_attr_opt::<i64>(name)?.unwrap_or(0);
        ensure!(heads >= 0, "{name} is {heads}");
        if heads == 0 {
            node.attribute.retain(|attribute| attribute.name != name);
        }
    }
    Ok(node)
}

#[derive(Debug, Clone)]
struct Attention {
    /// tract's, not causal, and with a mask where this has one or is causal.
    inner: Box<dyn Expansion>,
    is_causal: bool,
    has_mask: bool,
    has_past: bool,
    scale: Option<f32>,
}

impl Attention {
    /// The sizes of queries, of keys of the past and of all keys.
    fn sizes(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<[usize; 3]> {
        let size = |outlet: OutletId| {
            let shape = &model.outlet_fact(outlet)?.shape;
            ensure!(matches!(shape.rank(), 3 | 4), "queries or keys of rank {}", shape.rank());
            shape[shape.rank() - 2].to_usize().context("a sequence's length is not known")
        };
        let past = if self.has_past { size(inputs[3 + usize::from(self.has_mask)])? } else { 0 };
        Ok([size(inputs[0])?, past, past + size(inputs[1])?])
    }
}

impl Expansion for Attention {
    fn name(&self) -> StaticName {
        "Attention".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.inner.as_ref().nboutputs()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let count = 3 + usize::from(self.has_mask) + 2 * usize::from(self.has_past);
        check_input_arity(inputs, count)?;
        check_output_arity(outputs, self.inner.as_ref().nboutputs()?)?;
        solver.equals(&inputs[0].rank, &outputs[0].rank)?;
        for output in outputs {
            solver.equals(&inputs[0].datum_type, &output.datum_type)?;
        }
        Ok(())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        for &input in &inputs[..3] {
            let rank = model.outlet_fact(input)?.rank();
            ensure!(matches!(rank, 3 | 4), "queries, keys or values of rank {rank}");
        }
        let mut all: TVec<OutletId> = inputs.into();
        let given = self.has_mask.then(|| all.remove(3));
        let given = given.map(|mask| wire_addends(prefix, model, mask)).transpose()?;
        let causal = if self.is_causal {
            let [queries, past, keys] = self.sizes(model, inputs)?;
            let mask = causal_mask(queries, past, keys)?;
            Some(model.add_const(format!("{prefix}.causal"), mask)?)
        } else {
            None
        };
        let mask = match (given, causal) {
            (None, None) => return self.inner.as_ref().wire(prefix, model, inputs),
            (None, Some(causal)) => causal,
            (Some(given), None) => wire_finite(prefix, model, given)?,
            (Some(given), Some(causal)) => {
                let name = format!("{prefix}.mask");
                let both = wire_with_rank_broadcast(name, model, add(), &[given, causal])?[0];
                wire_finite(prefix, model, both)?
            }
        };
        all.insert(3, mask);
        let mut outputs = self.inner.as_ref().wire(prefix, model, &all)?;
        // A causal mask alone shows each query the first key.
        if self.has_mask {
            let [q, k, v] = attended(model, outputs[0])?;
            let name = format!("{prefix}.hidden_rows");
            let rows = typed(HiddenRows { scale: self.scale });
            outputs[0] = model.wire_node(name, rows, &[outputs[0], mask, q, k, v])?[0];
        }
        Ok(outputs)
    }
}

/// Queries, keys and values, each of rank 4, of tract's operator that gives an output.
fn attended(model: &TypedModel, output: OutletId) -> TractResult<[OutletId; 3]> {
    let mut node = model.node(output.node);
    while let &[before] = &node.inputs[..] {
        node = model.node(before.node);
    }
    let &[q, k, v, _] = &node.inputs[..] else { bail!("the engine's is not what it was") };
    Ok([q, k, v])
}

/// The queries that no key is shown to. Where a mask hides all of them by the least number or less,
/// they get zeros, as in ONNX Runtime; where it takes less from their scores, that decides. tract
/// passes over keys that it takes more from than FP16 holds.
#[derive(Debug)]
struct HiddenRows {
    scale: Option<f32>,
}

impl HiddenRows {
    /// Of addends that are all less: tract has passed over none of a query's keys otherwise, but for
    /// those that would get no share.
    const FAR: f32 = -6e4;

    /// What a query gets of the values by its scores.
    fn attend(
        &self,
        [q, k, v]: [&Rows; 3],
        mask: &Mask,
        [b, h, row]: [usize; 3],
        output: &mut [f32],
    ) {
        let [_, heads, _, width] = q.sizes;
        let [_, key_heads, keys, _] = k.sizes;
        let key_head = h / (heads / key_heads);
        let scale = self.scale.unwrap_or_else(|| 1.0 / (width as f32).sqrt());
        let asked = q.row(b, h, row);
        let score = |key| scale * dot(asked, k.row(b, key_head, key)) + mask.at([b, h, row], key);
        let scores: Vec<f32> = (0..keys).map(score).collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares = scores.iter().map(|score| (score - largest).exp());
        let sum: f32 = shares.clone().sum();
        output.fill(0.0);
        for (key, share) in shares.enumerate() {
            let values = v.row(b, key_head, key);
            output.iter_mut().zip(values).for_each(|(to, value)| *to += share / sum * value);
        }
    }
}

impl Kernel for HiddenRows {
    fn name(&self) -> &'static str {
        "HiddenRows"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [output, mask, _, _, _] = inputs else { bail!("got {} inputs", inputs.len()) };
        ensure!(matches!(output.shape.len(), 3 | 4), "an output of rank {}", output.shape.len());
        ensure!(mask.datum == DatumType::F32 && mask.shape.len() <= 4, "a mask of {mask:?}");
        ensure!(output.datum.is_float(), "expected floats, got {:?}", output.datum);
        Ok(tvec![Form::new(output.datum, output.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [output, mask, q, k, v] = inputs else { bail!("got {} inputs", inputs.len()) };
        let mask = Mask::new(mask)?;
        let most = mask.0.map_axis(tract_ndarray::Axis(3), |row| {
            row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        });
        if most.iter().all(|&most| most >= Self::FAR) {
            return Ok(tvec![(**output).clone()]);
        }
        let is_split = output.rank() == 4;
        let [q, k, v] = [Rows::new(q, None)?, Rows::new(k, None)?, Rows::new(v, None)?];
        let [batch, heads, queries, _] = q.sizes;
        let ([_, key_heads, _, _], values) = (k.sizes, v.sizes[3]);
        let fits = key_heads > 0 && heads.is_multiple_of(key_heads);
        ensure!(fits, "{heads} heads of queries and {key_heads} of keys");
        let datum = output.datum_type();
        let mut output = output.cast_to::<f32>()?.into_owned();
        let mut plain = output.try_as_plain_ram_mut()?;
        let written = plain.as_slice_mut::<f32>()?;
        ensure!(written.len() == batch * heads * queries * values, "an output of another size");
        for (b, h, row) in places([batch, heads, queries]) {
            let at = |axis: usize, index: usize| if most.shape()[axis] == 1 { 0 } else { index };
            let most = most.get([at(0, b), at(1, h), at(2, row)]);
            let most = *most.context("a mask of other sizes than the output's")?;
            if most >= Self::FAR {
                continue;
            }
            if row % ROWS_UNASKED == 0 {
                bodies::ask()?;
            }
            let place = if is_split {
                (b * heads + h) * queries + row
            } else {
                (b * queries + row) * heads + h
            };
            let written = &mut written[place * values..][..values];
            match most <= HIDDEN {
                true => written.fill(0.0),
                false => self.attend([&q, &k, &v], &mask, [b, h, row], written),
            }
        }
        Ok(tvec![output.cast_to_dt(datum)?.into_owned()])
    }
}

/// A mask as what is added to the scores.
fn wire_addends(prefix: &str, model: &mut TypedModel, mask: OutletId) -> TractResult<OutletId> {
    let fact = model.outlet_fact(mask)?;
    if fact.datum_type != DatumType::Bool {
        let name = format!("{prefix}.mask_as_f32");
        return Ok(model.wire_node(name, cast(DatumType::F32), &[mask])?[0]);
    }
    let rank = fact.rank();
    let mut constant = |name: &str, value: f32| {
        let value = tensor0(value).broadcast_into_rank(rank)?;
        model.add_const(format!("{prefix}.{name}"), value)
    };
    let (seen, hidden) = (constant("seen", 0.0)?, constant("hidden", HIDDEN)?);
    Ok(model.wire_node(format!("{prefix}.mask_as_sum"), Iff, &[mask, seen, hidden])?[0])
}

/// A mask without infinities: tract divides zero by zero where the first keys that it looks at are
/// hidden by one.
fn wire_finite(prefix: &str, model: &mut TypedModel, mask: OutletId) -> TractResult<OutletId> {
    let least = model.add_const(format!("{prefix}.least"), tensor0(HIDDEN))?;
    let name = format!("{prefix}.finite_mask");
    Ok(wire_with_rank_broadcast(name, model, max(), &[mask, least])?[0])
}

/// The query at `i` sees the whole past, and the keys up to the `i`th after it.
fn causal_mask(queries: usize, past: usize, keys: usize) -> TractResult<Tensor> {
    let size = queries.checked_mul(keys).filter(|&size| size < 1 << 28);
    ensure!(size.is_some(), "a mask of {queries} × {keys} is too large");
    let sees = |query: usize, key: usize| key <= query + past;
    let mask = tract_ndarray::Array2::from_shape_fn((queries, keys), |(query, key)| {
        if sees(query, key) { 0.0f32 } else { HIDDEN }
    });
    Ok(mask.into_tensor())
}
