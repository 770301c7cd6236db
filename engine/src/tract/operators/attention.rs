//! Attention (opset 23 on). tract lines the causal mask up with the first key even where there
//! is a past, and adds a boolean mask as numbers: here both become one mask of what to add, and
//! tract's operator does the rest.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::{cast::cast, logic::Iff, math::add};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::logic::wire_with_rank_broadcast;

use super::kernel::Built;

/// The attributes of its first version, which tract reads or refuses.
const KNOWN: [&str; 7] = [
    "is_causal",
    "kv_num_heads",
    "q_num_heads",
    "qk_matmul_output_mode",
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
    // Later versions add some that change the answer, as a window: none is passed over.
    if let Some(other) = node.attribute.iter().find(|other| !KNOWN.contains(&&*other.name)) {
        bail!("Attention's attribute {} is not served", other.name);
    }
    let theirs = tract_onnx::onnx().op_register.0.get("Attention").copied();
    let theirs = theirs.context("the engine lacks Attention")?;
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    let is_causal = node.get_attr_opt::<i64>("is_causal")?.unwrap_or(0) != 0;
    if !is_causal && !given(3) {
        return theirs(context, node);
    }
    ensure!(given(4) == given(5), "past_key and past_value go together");
    let mut masked = node.clone();
    masked.attribute.retain(|attribute| attribute.name != "is_causal");
    masked.input.resize(masked.input.len().max(4), String::new());
    masked.input[3] = "mask".to_owned();
    let (inner, _) = theirs(context, &masked)?;
    let inner = inner.as_op().downcast_ref::<Box<dyn Expansion>>();
    let inner = inner.context("the engine's Attention is not what it was")?.clone();
    let masked = Masked { inner, is_causal, has_mask: given(3), has_past: given(4) };
    Ok((expand(masked), Vec::new()))
}

#[derive(Debug, Clone)]
struct Masked {
    /// tract's, with a mask and not causal.
    inner: Box<dyn Expansion>,
    is_causal: bool,
    has_mask: bool,
    has_past: bool,
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
        self.inner.as_ref().wire(prefix, model, &all)
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
