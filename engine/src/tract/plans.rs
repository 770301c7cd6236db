//! The optimised plans of one graph: one where its shapes are fixed, or where all of it runs with
//! any sizes; else one for each of the last few shapes asked for.
//!
//! Where a graph computes with the values of an input as if they were shapes, axes or sizes,
//! tract must know them to plan it. Such inputs are made constants, with a plan for each of the
//! last few values.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::unimpl::UnimplementedOp;

use super::by_sizes::{Asked, BySizes};
use super::extent::Extent;
use super::fuse::{self, PackedWeights};
use super::{Onnx, bodies, chain, compiled};
use crate::graph::Failure;
use crate::guard::guarded;
use crate::once::Once;

/// Of an input whose sizes are guessed: some graphs fold constants of that size.
const MAX_GUESSED_ELEMENTS: usize = 1 << 22;

pub(super) type Shapes = TVec<TVec<usize>>;

/// What is run, and which of the graph's inputs it still takes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) runnable: Arc<TypedRunnableModel>,
    constants: Vec<usize>,
    /// What a run takes, if that is known.
    extent: Option<Extent>,
}

#[derive(Debug)]
pub(super) enum Plans {
    Fixed { plan: Arc<Plan>, inputs: Shapes },
    Free { for_all: Option<Arc<Plan>>, by_sizes: BySizes },
    Compiled { plan: Arc<Plan>, onnx: Onnx, others: Arc<Once<Result<Arc<Plans>, Failure>>> },
}

/// What a graph is made into.
pub(super) struct Planned {
    pub(super) plans: Plans,
    /// What is known of its outputs, if anything is.
    pub(super) outputs: Vec<TypedFact>,
    /// What the first of the plans was made of, where that is wanted and there is one.
    pub(super) fused: Option<TypedModel>,
}

/// A plan, and what it was made of where that is wanted.
struct Made {
    plan: Plan,
    fused: Option<TypedModel>,
}

impl Made {
    fn new(fused: TypedModel, keeps_fused: bool) -> TractResult<Self> {
        let kept = keeps_fused.then(|| fused.clone());
        Ok(Self { plan: Plan::new(fused, [].into_iter())?, fused: kept })
    }
}

impl Plan {
    pub(super) fn new(
        fused: TypedModel,
        constants: impl Iterator<Item = usize>,
    ) -> TractResult<Self> {
        let runnable = bodies::plan(fused)?;
        let extent = Extent::of(runnable.model());
        Ok(Self { runnable, constants: constants.collect(), extent })
    }

    /// Whether it was made for more than one size: what it cannot do for these, another may.
    pub(super) fn has_free_sizes(&self) -> bool {
        let model = self.runnable.model();
        let mut facts = model.inputs.iter().filter_map(|&input| model.outlet_fact(input).ok());
        facts.any(|fact| !fact.shape.is_concrete())
    }

    /// The inputs that are left, of all the graph's.
    pub(super) fn pick<'a>(
        &self,
        inputs: &'a [Arc<Tensor>],
    ) -> impl Iterator<Item = &'a Arc<Tensor>> {
        let left = inputs.iter().enumerate();
        left.filter(|(index, _)| !self.constants.contains(index)).map(|(_, value)| value)
    }

    /// Whether a run on these inputs is known to take no more than that, bytes.
    pub(super) fn takes_at_most(&self, most: usize, inputs: &[Arc<Tensor>]) -> bool {
        let Some(extent) = &self.extent else { return false };
        let inputs: TVec<_> = self.pick(inputs).collect();
        let sizes = match extent.is_fixed() {
            true => Some(SymbolValues::default()),
            false => self.sizes(&inputs),
        };
        let bytes = sizes.and_then(|sizes| extent.bytes(&sizes, &inputs));
        bytes.is_some_and(|bytes| bytes <= most)
    }

    /// The free sizes that inputs come to, if they have those that the plan asks for: sizes of one
    /// name are equal.
    fn sizes(&self, values: &[&Arc<Tensor>]) -> Option<SymbolValues> {
        let model = self.runnable.model();
        let mut found = SymbolValues::default();
        if model.inputs.len() != values.len() {
            return None;
        }
        for (&input, value) in model.inputs.iter().zip(values) {
            let fact = model.outlet_fact(input).ok()?;
            if fact.rank() != value.rank() {
                return None;
            }
            for (dim, &size) in fact.shape.iter().zip(value.shape()) {
                let size = i64::try_from(size).ok()?;
                if let TDim::Sym(symbol) = dim
                    && found.get(symbol).is_none()
                {
                    found.set(symbol, size);
                }
                if dim.eval_to_i64(&found).ok()? != size {
                    return None;
                }
            }
        }
        Some(found)
    }

    fn fits(&self, inputs: &[Arc<Tensor>]) -> bool {
        self.sizes(&inputs.iter().collect::<TVec<_>>()).is_some()
    }
}

impl Plans {
    /// Optimises the model.
    ///
    /// # Errors
    /// A text: what the engine cannot do with it.
    pub(super) fn planned(model: InferenceModel, keeps_fused: bool) -> Result<Planned, String> {
        let facts = input_facts(&model).map_err(cannot)?;
        let concrete: Option<Shapes> = facts.iter().map(concrete_shape).collect();
        let Some(inputs) = concrete else { return Self::free(model, &facts, None, keeps_fused) };
        let packed = PackedWeights::of_one_plan();
        let fused = Asked::shapes(inputs.clone()).fuse(&model, &packed);
        match fused.and_then(|fused| Made::new(fused, keeps_fused)) {
            Ok(Made { plan, fused }) => {
                let outputs = output_facts(plan.runnable.model()).map_err(cannot)?;
                let plans = Self::Fixed { plan: Arc::new(plan), inputs };
                Ok(Planned { plans, outputs, fused })
            }
            Err(error) => Self::free(model, &facts, Some(error), keeps_fused),
        }
    }

    /// `failed`: why fixed sizes do not do.
    fn free(
        model: InferenceModel,
        facts: &[InferenceFact],
        failed: Option<TractError>,
        keeps_fused: bool,
    ) -> Result<Planned, String> {
        let packed = PackedWeights::shared();
        // With free sizes the symbolic types say what the outputs are. Some nets cannot be
        // typed so (their own arithmetic on shapes defeats it): those are tried with sizes.
        let (typed, tries) = match failed {
            Some(error) => (Err(error), 0),
            None => match attempt(|| model.clone().into_typed()) {
                // Of a free batch the first plan is likely to be of use; of other free sizes not.
                Ok(typed) => (Ok(typed), usize::from(facts.iter().all(is_free_in_batch_only))),
                Err(error) => (Err(error), usize::MAX),
            },
        };
        let whole = typed.as_ref().ok().filter(|_| tries == 0 && !asks_of_free_sizes(&model));
        let for_all = whole.and_then(|typed| fuse_for_all(typed, &packed));
        let for_all = for_all.and_then(|fused| attempt(|| Made::new(fused, keeps_fused)).ok());
        let mut refused = None;
        let first =
            guesses(&model, facts, tries).into_iter().map(Asked::shapes).find_map(|asked| {
                let made = attempt(|| Made::new(asked.fuse(&model, &packed)?, keeps_fused));
                made.map_err(|error| refused = Some(error)).ok().map(|made| (asked, made))
            });
        let outputs = match (&typed, &first) {
            (Ok(typed), _) => output_facts(typed).map_err(cannot)?,
            (Err(_), Some((_, made))) => {
                let facts = output_facts(made.plan.runnable.model()).map_err(cannot)?;
                facts.into_iter().map(forget_sizes).collect()
            }
            (Err(_), None) => Vec::new(),
        };
        let parameters = parameters(facts);
        let level = match typed {
            Err(error) if first.is_none() => {
                if parameters.len() == 1 || has_unimplemented(&model) {
                    // Without sizes a source of unknown type is all that typing tells of.
                    return Err(cannot(refused.unwrap_or(error)));
                }
                1
            }
            _ => 0,
        };
        let (for_all, whole) = for_all.map(|made| (Arc::new(made.plan), made.fused)).unzip();
        let (first, fused) = first.map(|(asked, made)| ((asked, made.plan), made.fused)).unzip();
        let by_sizes = BySizes::new(model, packed, (parameters, level), first);
        let fused = whole.or(fused).flatten();
        Ok(Planned { plans: Self::Free { for_all, by_sizes }, outputs, fused })
    }

    /// From what a compiled plan holds; the file is read where a run asks for other sizes.
    ///
    /// # Errors
    /// A text: tract cannot make it a plan.
    pub(super) fn compiled(fused: TypedModel, onnx: Onnx) -> Result<Self, String> {
        let plan = Plan::new(fused, [].into_iter()).map_err(|error| chain(&error))?;
        Ok(Self::Compiled { plan: Arc::new(plan), onnx, others: Arc::default() })
    }

    /// The plan for these inputs, if it is made.
    pub(super) fn made(&self, inputs: &[Arc<Tensor>]) -> Option<Arc<Plan>> {
        match self {
            Self::Free { for_all: Some(plan), .. } | Self::Compiled { plan, .. }
                if plan.fits(inputs) =>
            {
                Some(plan.clone())
            }
            Self::Fixed { plan, inputs: fixed } => (*fixed == shapes(inputs)).then(|| plan.clone()),
            Self::Free { by_sizes, .. } => by_sizes.made(inputs),
            Self::Compiled { others, .. } => others.get()?.ok()?.made(inputs),
        }
    }

    /// The plan for just these sizes, made now where there is none yet.
    ///
    /// # Errors
    /// The graph cannot take them; it takes too much memory to find out; its own file is not to
    /// be had.
    pub(super) fn make(&self, inputs: &[Arc<Tensor>]) -> Result<Arc<Plan>, Failure> {
        match self {
            Self::Fixed { plan, inputs: fixed } if *fixed == shapes(inputs) => Ok(plan.clone()),
            Self::Fixed { inputs: fixed, .. } => {
                let came = shapes(inputs);
                Err(Failure::Refused(format!(
                    "the graph takes inputs of shapes {fixed:?}, got {came:?}"
                )))
            }
            Self::Free { by_sizes, .. } => by_sizes.make(inputs),
            Self::Compiled { onnx, others, .. } => {
                let make = || super::plans_of(onnx).map(Arc::new).map_err(Failure::Failed);
                let others = others.get_or_make(Err(too_large()), make);
                others?.make(inputs)
            }
        }
    }
}

/// Why there is no plan, where its making was stopped.
pub(super) fn too_large() -> Failure {
    Failure::OutOfMemory("a plan for these inputs took more memory than a run may".to_owned())
}

pub(super) fn shapes(inputs: &[Arc<Tensor>]) -> Shapes {
    inputs.iter().map(|input| input.shape().into()).collect()
}

/// The model with our operators, where it can be planned for all sizes at once: what is left of
/// it are operators that are as quick so.
fn fuse_for_all(typed: &TypedModel, packed: &PackedWeights) -> Option<TypedModel> {
    // Most that can not is seen before it is simplified, which takes long.
    const SIMPLIFIED: [&str; 3] = ["EinSum", "StridedSlice", "Identity"];
    let may_be_left =
        |node: &TypedNode| compiled::holds_operator(node) || SIMPLIFIED.contains(&&*node.op.name());
    if !typed.nodes().iter().all(may_be_left) {
        return None;
    }
    let fused = attempt(|| fuse::fuse(typed.clone(), packed)).ok()?;
    compiled::holds(&fused).then_some(fused)
}

/// Whether what it computes depends on how a free size compares with another: tract takes sizes
/// that it cannot compare to differ, and so decides for good.
fn asks_of_free_sizes(model: &InferenceModel) -> bool {
    let mut analysed = model.clone();
    if attempt(|| analysed.analyse(false)).is_err() {
        return true;
    }
    let values = |node: &Node<InferenceFact, Box<dyn InferenceOp>>| -> Vec<_> {
        let facts = node.inputs.iter().filter_map(|&input| analysed.outlet_fact(input).ok());
        facts.map(|fact| fact.value.concretize()).collect()
    };
    analysed.nodes().iter().any(|node| match &*node.op.name() {
        // What is within may ask, too.
        "If" | "Repeated" => true,
        "Eq" | "NE" => {
            let values = values(node);
            // Exporters look for the -1 that stands for a size that is to be kept.
            values.iter().any(is_free_size) && !values.iter().any(is_negative)
        }
        "LT" | "LTE" | "GT" | "GTE" => values(node).iter().any(is_free_size),
        _ => false,
    })
}

fn is_free_size(value: &Option<Arc<Tensor>>) -> bool {
    let Some(value) = value.as_deref().filter(|value| value.datum_type() == TDim::datum_type())
    else {
        return false;
    };
    value.cast_to::<i64>().is_err()
}

fn is_negative(value: &Option<Arc<Tensor>>) -> bool {
    let Some(Ok(value)) = value.as_deref().map(|value| value.cast_to::<i64>()) else {
        return false;
    };
    let numbers = value.try_as_plain_ram();
    numbers.is_ok_and(|numbers| {
        numbers.as_slice::<i64>().is_ok_and(|numbers| numbers.iter().all(|&number| number < 0))
    })
}

fn cannot(error: TractError) -> String {
    format!("cannot be planned: {}", chain(&error))
}

/// tract panics on some nets that have no sizes yet, and on some sizes that are guessed.
fn attempt<T>(work: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    guarded(work).unwrap_or_else(|panic| Err(TractError::msg(panic)))
}

/// The inputs that a graph may compute with as if they were shapes or sizes.
fn parameters(facts: &[InferenceFact]) -> Vec<Vec<usize>> {
    let datum = |index: usize| facts[index].datum_type.concretize();
    let is_list =
        |index: &usize| facts[*index].shape.rank().concretize().is_none_or(|rank| rank <= 1);
    let lists = || (0..facts.len()).filter(is_list);
    let is_whole = |index: &usize| {
        datum(*index).is_some_and(|datum| datum.is_integer() || datum == DatumType::Bool)
    };
    // The first input is what a graph is about.
    let is_number = |index: &usize| {
        is_whole(index) || *index > 0 && datum(*index).is_some_and(|datum| datum.is_float())
    };
    let whole = lists().filter(is_whole);
    let all: Vec<usize> = lists().filter(is_number).collect();
    let mut levels = vec![vec![], whole.collect(), all];
    levels.dedup();
    levels
}

fn has_unimplemented(model: &InferenceModel) -> bool {
    model.nodes().iter().any(|node| node.op_is::<UnimplementedOp>())
}

fn input_facts(model: &InferenceModel) -> TractResult<Vec<InferenceFact>> {
    model.input_outlets()?.iter().map(|&outlet| model.outlet_fact(outlet).cloned()).collect()
}

fn concrete_shape(fact: &InferenceFact) -> Option<TVec<usize>> {
    let shape = fact.shape.concretize()?;
    shape.iter().map(|dim| dim.to_usize().ok()).collect()
}

fn is_free_in_batch_only(fact: &InferenceFact) -> bool {
    let is_known =
        |dim: &GenericFactoid<TDim>| dim.concretize().is_some_and(|dim| dim.to_usize().is_ok());
    fact.shape.rank().concretize().is_some_and(|rank| rank > 0)
        && fact.shape.dims().skip(1).all(is_known)
}

/// Shapes to try a graph with: what it says of its inputs, and one or more for the rest.
fn guesses(model: &InferenceModel, facts: &[InferenceFact], most: usize) -> Vec<Shapes> {
    if most == 0 {
        return Vec::new();
    }
    let mut analysed = model.clone();
    // What the analysis found out before it failed is worth having, too.
    let _ = analysed.analyse(true);
    let analysed = input_facts(&analysed).unwrap_or_default();
    // The first axis is a batch's. Of pictures, 224 is the least that nets of many steps take.
    let known = |fact: &InferenceFact, size: usize| {
        let rank = fact.shape.rank().concretize()? as usize;
        let sizes = fact.shape.dims().take(rank).enumerate().map(|(axis, dim)| {
            let known = dim.concretize().and_then(|dim| dim.to_usize().ok());
            known.unwrap_or(if axis == 0 { 1 } else { size })
        });
        let sizes: TVec<usize> = sizes.collect();
        let elements = sizes.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
        (size == 1 || elements <= MAX_GUESSED_ELEMENTS).then_some(sizes)
    };
    let shapes = |size: usize| {
        let facts = facts.iter().enumerate();
        facts.map(|(index, fact)| known(analysed.get(index).unwrap_or(fact), size)).collect()
    };
    [1, 32, 224].into_iter().filter_map(shapes).take(most).collect()
}

fn output_facts(model: &TypedModel) -> TractResult<Vec<TypedFact>> {
    model.output_outlets()?.iter().map(|&outlet| model.outlet_fact(outlet).cloned()).collect()
}

/// Keeps the rank and type of a fact that was found for one shape of many.
fn forget_sizes(mut fact: TypedFact) -> TypedFact {
    let scope = SymbolScope::default();
    fact.shape = fact
        .shape
        .iter()
        .map(|_| scope.new_with_prefix("free").to_dim())
        .collect::<TVec<TDim>>()
        .into();
    fact
}
