//! The optimised plans of one graph: one where its shapes are fixed, else one for each of the
//! last few shapes asked for. tract's convolutions are generated for concrete sizes only: the
//! same network planned with a symbolic batch takes seven times as long.
//!
//! Where a graph computes with the values of an input as if they were shapes, axes or sizes,
//! tract must know them to plan it. Such inputs are made constants, with a plan for each of the
//! last few values.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::konst::Const;
use tract_onnx::tract_hir::ops::unimpl::UnimplementedOp;

use super::chain;
use super::fuse::{self, PackedWeights};
use crate::guard::guarded;

/// Plans remembered for a graph with free sizes; the one unused longest goes first.
const REMEMBERED_PLANS: usize = 8;

/// Shapes of which is remembered what they need.
const REMEMBERED_LEVELS: usize = 64;

/// Elements of an input that may be made a constant: a shape, axes, sizes, a scalar.
const MAX_PARAMETER_ELEMENTS: usize = 64;

/// Of an input whose sizes are guessed: some graphs fold constants of that size.
const MAX_GUESSED_ELEMENTS: usize = 1 << 22;

type Shapes = TVec<TVec<usize>>;

/// What is run, and which of the graph's inputs it still takes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) runnable: Arc<TypedRunnableModel>,
    constants: Vec<usize>,
}

#[derive(Debug)]
pub(super) enum Plans {
    Fixed { plan: Arc<Plan>, inputs: Shapes },
    Free(Free),
}

#[derive(Debug)]
pub(super) struct Free {
    model: Box<InferenceModel>,
    packed: PackedWeights,
    /// Inputs to be made constants: none, those of whole numbers, those of other numbers too.
    /// The next is tried where one does not do.
    parameters: Vec<Vec<usize>>,
    /// Which of them does, where nothing is known of the shapes.
    level: usize,
    /// And where something is; the last few.
    levels: Mutex<Vec<(Shapes, usize)>>,
    recent: Mutex<Vec<(Asked, Arc<Slot>)>>,
}

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    shapes: Shapes,
    constants: Vec<(usize, Arc<Tensor>)>,
}

/// A plan being made or made: callers for the same shape wait for one making of it.
type Slot = OnceLock<Result<Arc<Plan>, String>>;

impl Plan {
    /// The inputs that are left, of all the graph's.
    pub(super) fn pick(&self, inputs: TVec<TValue>) -> TVec<TValue> {
        let left = inputs.into_iter().enumerate();
        left.filter(|(index, _)| !self.constants.contains(index)).map(|(_, value)| value).collect()
    }
}

impl Plans {
    /// Optimises the model, and returns what is known of its outputs, if anything is.
    ///
    /// # Errors
    /// A text: what the engine cannot do with it.
    pub(super) fn new(model: InferenceModel) -> Result<(Self, Vec<TypedFact>), String> {
        let cannot = |error: TractError| format!("cannot be planned: {}", chain(&error));
        let facts = input_facts(&model).map_err(cannot)?;
        let asked = |shapes| Asked { shapes, constants: Vec::new() };
        let concrete: Option<Shapes> = facts.iter().map(concrete_shape).collect();
        let alone = PackedWeights::of_one_plan();
        let failed =
            match concrete.map(|inputs| (plan(&model, &asked(inputs.clone()), &alone), inputs)) {
                Some((Ok(plan), inputs)) => {
                    let outputs = output_facts(plan.runnable.model()).map_err(cannot)?;
                    return Ok((Self::Fixed { plan: Arc::new(plan), inputs }, outputs));
                }
                Some((Err(error), _)) => Some(error),
                None => None,
            };
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
        let tried = guesses(&model, &facts).into_iter().take(tries).map(asked);
        let mut refused = None;
        let mut tried = tried.filter_map(|asked| match attempt(|| plan(&model, &asked, &packed)) {
            Ok(plan) => Some((plan, asked)),
            Err(error) => {
                refused = Some(error);
                None
            }
        });
        let (planned, first) = tried.next().unzip();
        let outputs = match (&typed, &planned) {
            (Ok(typed), _) => output_facts(typed).map_err(cannot)?,
            (Err(_), Some(plan)) => {
                let facts = output_facts(plan.runnable.model()).map_err(cannot)?;
                facts.into_iter().map(forget_sizes).collect()
            }
            (Err(_), None) => Vec::new(),
        };
        let parameters = parameters(&facts);
        let level = match typed {
            Err(error) if planned.is_none() => {
                if parameters.len() == 1 || has_unimplemented(&model) {
                    // Without sizes a source of unknown type is all that typing tells of.
                    return Err(cannot(refused.unwrap_or(error)));
                }
                1
            }
            _ => 0,
        };
        let slot = |plan| Arc::new(OnceLock::from(Ok(Arc::new(plan))));
        let recent = first.zip(planned.map(slot)).into_iter().collect();
        let (levels, recent) = (Mutex::default(), Mutex::new(recent));
        let model = Box::new(model);
        Ok((Self::Free(Free { model, packed, parameters, level, levels, recent }), outputs))
    }

    /// The plan for these inputs, made now where there is none yet.
    ///
    /// # Errors
    /// A text: the graph cannot take them.
    pub(super) fn get(&self, values: &[TValue]) -> Result<Arc<Plan>, String> {
        let shapes: Shapes = values.iter().map(|value| value.shape().into()).collect();
        match self {
            Self::Fixed { plan, inputs } if *inputs == shapes => Ok(plan.clone()),
            Self::Fixed { inputs, .. } => {
                Err(format!("the graph takes inputs of shapes {inputs:?}, got {shapes:?}"))
            }
            Self::Free(free) => free.get(shapes, values),
        }
    }
}

impl Free {
    fn get(&self, shapes: Shapes, values: &[TValue]) -> Result<Arc<Plan>, String> {
        let level = self.level_of(&shapes);
        let mut found = self.at_level(level, &shapes, values);
        for higher in level + 1..self.parameters.len() {
            if found.is_ok() {
                break;
            }
            let other = self.at_level(higher, &shapes, values);
            if other.is_ok() {
                self.remember_level(&shapes, higher);
                found = other;
            }
        }
        found
    }

    /// By shapes: one odd request must not have every other planned for its values.
    fn level_of(&self, shapes: &Shapes) -> usize {
        let levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = levels.iter().find(|(known, _)| known == shapes);
        known.map_or(self.level, |(_, level)| *level)
    }

    fn remember_level(&self, shapes: &Shapes, level: usize) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.retain(|(known, _)| known != shapes);
        levels.insert(0, (shapes.clone(), level));
        levels.truncate(REMEMBERED_LEVELS);
    }

    fn at_level(
        &self,
        level: usize,
        shapes: &Shapes,
        values: &[TValue],
    ) -> Result<Arc<Plan>, String> {
        let small = |&&index: &&usize| values[index].len() <= MAX_PARAMETER_ELEMENTS;
        let constants = self.parameters[level].iter().filter(small);
        let constants = constants.map(|&index| (index, values[index].clone().into_arc_tensor()));
        let asked = Asked { shapes: shapes.clone(), constants: constants.collect() };
        let slot = self.slot_for(&asked);
        let made = slot.get_or_init(|| {
            let plan = plan(&self.model, &asked, &self.packed).map_err(|error| {
                format!("the graph cannot take inputs of shapes {shapes:?}: {}", chain(&error))
            });
            plan.map(Arc::new)
        });
        made.clone()
    }

    /// Finds or makes the slot of what is asked and puts it first.
    fn slot_for(&self, asked: &Asked) -> Arc<Slot> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let known = recent.iter().position(|(known, _)| known == asked);
        let entry = match known {
            Some(index) => recent.remove(index),
            None => (asked.clone(), Arc::default()),
        };
        let slot = entry.1.clone();
        recent.insert(0, entry);
        recent.truncate(REMEMBERED_PLANS);
        slot
    }
}

/// tract panics on some nets that have no sizes yet, and on some sizes that are guessed.
fn attempt<T>(work: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    guarded(work).unwrap_or_else(|panic| Err(TractError::msg(panic)))
}

fn plan(model: &InferenceModel, asked: &Asked, packed: &PackedWeights) -> TractResult<Plan> {
    let mut model = model.clone();
    for (index, shape) in asked.shapes.iter().enumerate() {
        let mut fact = model.input_fact(index)?.clone();
        fact.shape =
            ShapeFactoid::from(shape.iter().map(|size| size.to_dim()).collect::<TVec<TDim>>());
        model.set_input_fact(index, fact)?;
    }
    for (index, constant) in &asked.constants {
        let outlet = model.input_outlets()?[*index];
        let node = model.node_mut(outlet.node);
        node.op = Box::new(Const::new(constant.clone())?);
        let mut fact = InferenceFact::dt_shape(constant.datum_type(), constant.shape());
        fact.value = constant.clone().into();
        node.outputs[0].fact = fact;
    }
    let constants: Vec<usize> = asked.constants.iter().map(|(index, _)| *index).collect();
    let mut index = 0;
    model.inputs.retain(|_| {
        index += 1;
        !constants.contains(&(index - 1))
    });
    let runnable = fuse::optimize(model.into_typed()?, packed)?.into_runnable()?;
    Ok(Plan { runnable, constants })
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
fn guesses(model: &InferenceModel, facts: &[InferenceFact]) -> Vec<Shapes> {
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
    [1, 32, 224].into_iter().filter_map(shapes).collect()
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
