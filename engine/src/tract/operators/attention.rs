//! Attention (opset 23 on). tract lines the causal mask up with the first key even where there
//! is a past, and adds a boolean mask as numbers: here both become one mask of what to add, and
//! tract's operator does the rest. Queries that see no key get zeros. What tract has not at all is
//! `attend`'s.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::{cast::cast, logic::Iff, math::add};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::logic::wire_with_rank_broadcast;

use super::kernel::{Built, Form, Kernel, typed};
use super::{attend, theirs};

/// The attributes that tract reads or refuses, and those of windows, where there are none.
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
    if attend::is_needed(node)? {
        return attend::attend(node);
    }
    // Later versions add some that change the answer, as a window: none is passed over.
    if let Some(other) = node.attribute.iter().find(|other| !KNOWN.contains(&&*other.name)) {
        bail!("Attention's attribute {} is not served", other.name);
    }
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    let is_causal = node.get_attr_opt::<i64>("is_causal")?.unwrap_or(0) != 0;
    if !is_causal && !given(3) {
        return theirs::built(context, node);
    }
    ensure!(given(4) == given(5), "past_key and past_value go together");
    let mut masked = node.clone();
    masked.attribute.retain(|attribute| attribute.name != "is_causal");
    masked.input.resize(masked.input.len().max(4), String::new());
    masked.input[3] = "mask".to_owned();
    let inner = theirs::expansion(context, &masked)?;
    let query_heads = usize::try_from(node.get_attr_opt::<i64>("q_num_heads")?.unwrap_or(1))?;
    let (has_mask, has_past) = (given(3), given(4));
    let masked = Masked { inner, is_causal, has_mask, has_past, query_heads };
    Ok((expand(masked), Vec::new()))
}

#[derive(Debug, Clone)]
struct Masked {
    /// tract's, with a mask and not causal.
    inner: Box<dyn Expansion>,
    is_causal: bool,
    has_mask: bool,
    has_past: bool,
    /// Where they are not an axis of the queries.
    query_heads: usize,
}

impl Masked {
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

impl Expansion for Masked {
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
            (Some(given), Some(causal)) => {
                let name = format!("{prefix}.mask");
                wire_with_rank_broadcast(name, model, add(), &[given, causal])?[0]
            }
            (given, causal) => given.or(causal).context("nothing to mask")?,
        };
        all.insert(3, mask);
        let mut outputs = self.inner.as_ref().wire(prefix, model, &all)?;
        // A causal mask alone shows each query the first key.
        if self.has_mask {
            let name = format!("{prefix}.seen_rows");
            let heads = self.query_heads;
            outputs[0] = model.wire_node(name, typed(SeenRows { heads }), &[outputs[0], mask])?[0];
        }
        Ok(outputs)
    }
}

/// Zeros where a query's mask hides all keys, as ONNX has it: tract divides zero by zero there.
#[derive(Debug)]
struct SeenRows {
    /// Of an output of rank 3.
    heads: usize,
}

impl SeenRows {
    /// Batch, heads, queries and the values of one, as an output of rank 3 or 4 lies in memory.
    fn sizes(&self, output: &[usize]) -> TractResult<[usize; 4]> {
        match *output {
            [batch, heads, queries, values] => Ok([batch, heads, queries, values]),
            [batch, queries, values] => {
                ensure!(values.is_multiple_of(self.heads.max(1)), "{values} values by heads");
                Ok([batch, self.heads, queries, values / self.heads.max(1)])
            }
            _ => bail!("an output of rank {}", output.len()),
        }
    }

    fn hide<T: Datum + Copy + Default>(
        &self,
        output: &Tensor,
        mask: &Tensor,
    ) -> TractResult<Tensor> {
        let mut output = output.clone();
        let is_split = output.rank() == 4;
        let [_, heads, queries, values] = self.sizes(output.shape())?;
        let mask = mask.clone().broadcast_into_rank(4)?;
        let mask = mask.to_plain_array_view::<f32>()?;
        let hidden = mask.map_axis(tract_ndarray::Axis(3), |row| {
            row.iter().all(|addend| *addend == f32::NEG_INFINITY)
        });
        let at = |axis: usize, index: usize| if hidden.shape()[axis] == 1 { 0 } else { index };
        let mut plain = output.try_as_plain_ram_mut()?;
        let rows = plain.as_slice_mut::<T>()?.chunks_exact_mut(values.max(1));
        for (row, output) in rows.enumerate() {
            let (outer, inner) = if is_split { (heads, queries) } else { (queries, heads) };
            let (batch, outer, inner) = (row / (outer * inner), row / inner % outer, row % inner);
            let (head, query) = if is_split { (outer, inner) } else { (inner, outer) };
            let place = [at(0, batch), at(1, head), at(2, query)];
            let hidden = hidden.get(place).context("a mask of other sizes than the output's")?;
            if *hidden {
                output.fill(T::default());
            }
        }
        Ok(output)
    }
}

impl Kernel for SeenRows {
    fn name(&self) -> &'static str {
        "SeenRows"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [output, mask] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        ensure!(matches!(output.shape.len(), 3 | 4), "an output of rank {}", output.shape.len());
        ensure!(mask.datum == DatumType::F32 && mask.shape.len() <= 4, "a mask of {mask:?}");
        ensure!(output.datum.is_float(), "expected floats, got {:?}", output.datum);
        Ok(tvec![Form::new(output.datum, output.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [output, mask] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![match output.datum_type() {
            DatumType::F16 => self.hide::<f16>(output, mask)?,
            DatumType::F64 => self.hide::<f64>(output, mask)?,
            _ => self.hide::<f32>(output, mask)?,
        }])
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
    let (seen, hidden) = (constant("seen", 0.0)?, constant("hidden", f32::NEG_INFINITY)?);
    Ok(model.wire_node(format!("{prefix}.mask_as_sum"), Iff, &[mask, seen, hidden])?[0])
}

/// The query at `i` sees the whole past, and the keys up to the `i`th after it.
fn causal_mask(queries: usize, past: usize, keys: usize) -> TractResult<Tensor> {
    let size = queries.checked_mul(keys).filter(|&size| size < 1 << 28);
    ensure!(size.is_some(), "a mask of {queries} × {keys} is too large");
    let sees = |query: usize, key: usize| key <= query + past;
    let mask = tract_ndarray::Array2::from_shape_fn((queries, keys), |(query, key)| {
        if sees(query, key) { 0.0f32 } else { f32::NEG_INFINITY }
    });
    Ok(mask.into_tensor())
}
