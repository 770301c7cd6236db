//! The optimised plans of one graph: one where its shapes are fixed, else one for each of the
//! last few shapes asked for. tract's convolutions are generated for concrete sizes only: the
//! same network planned with a symbolic batch takes seven times as long.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

use super::chain;

pub(super) type Plan = Arc<TypedRunnableModel>;

/// Shapes remembered for a graph with free sizes; the one unused longest goes first.
const REMEMBERED_SHAPES: usize = 8;

type Shapes = TVec<TVec<usize>>;

#[derive(Debug)]
pub(super) enum Plans {
    Fixed { plan: Plan, inputs: Shapes },
    Free { model: Box<InferenceModel>, recent: Mutex<Vec<(Shapes, Arc<Slot>)>> },
}

/// A plan being made or made: callers for the same shape wait for one making of it.
type Slot = OnceLock<Result<Plan, String>>;

impl Plans {
    /// Optimises the model, and returns what is known of its outputs.
    ///
    /// # Errors
    /// A text: what the engine cannot do with it.
    pub(super) fn new(model: InferenceModel) -> Result<(Self, Vec<TypedFact>), String> {
        let cannot = |error: TractError| format!("cannot be planned: {}", chain(&error));
        let facts = model.input_outlets().and_then(|inputs| {
            inputs
                .iter()
                .map(|&outlet| model.outlet_fact(outlet).cloned())
                .collect::<TractResult<Vec<_>>>()
        });
        let facts = facts.map_err(cannot)?;
        let concrete: Option<Shapes> = facts
            .iter()
            .map(|fact| {
                let shape = fact.shape.concretize()?;
                shape.iter().map(|dim| dim.to_usize().ok()).collect()
            })
            .collect();
        if let Some(inputs) = concrete {
            let plan = plan(&model, &inputs).map_err(cannot)?;
            let outputs = output_facts(plan.model()).map_err(cannot)?;
            return Ok((Self::Fixed { plan, inputs }, outputs));
        }
        // With free sizes the symbolic types say what the outputs are. Some nets cannot be
        // typed so (their own arithmetic on shapes defeats it): those are tried with ones.
        let typed = model.clone().into_typed();
        let ones: Option<Shapes> = facts.iter().map(ones_for).collect();
        let first = ones.ok_or("cannot be planned: an input has no known rank")?;
        let planned = plan(&model, &first);
        let outputs = match (&typed, &planned) {
            (Ok(typed), _) => output_facts(typed).map_err(cannot)?,
            (Err(_), Ok(plan)) => {
                output_facts(plan.model()).map_err(cannot)?.into_iter().map(forget_sizes).collect()
            }
            (Err(error), Err(_)) => return Err(format!("cannot be planned: {}", chain(error))),
        };
        let mut recent = Vec::new();
        if let Ok(plan) = planned {
            recent.push((first, Arc::new(OnceLock::from(Ok(plan)))));
        }
        Ok((Self::Free { model: Box::new(model), recent: Mutex::new(recent) }, outputs))
    }

    /// The plan for inputs of these shapes, made now where there is none yet.
    ///
    /// # Errors
    /// A text: the graph cannot take these shapes.
    pub(super) fn get(&self, values: &[TValue]) -> Result<Plan, String> {
        let shapes: Shapes = values.iter().map(|value| value.shape().into()).collect();
        match self {
            Self::Fixed { plan, inputs } if *inputs == shapes => Ok(plan.clone()),
            Self::Fixed { inputs, .. } => {
                Err(format!("the graph takes inputs of shapes {inputs:?}, got {shapes:?}"))
            }
            Self::Free { model, recent } => {
                let slot = slot_for(recent, &shapes);
                slot.get_or_init(|| {
                    plan(model, &shapes).map_err(|error| {
                        format!(
                            "the graph cannot take inputs of shapes {shapes:?}: {}",
                            chain(&error)
                        )
                    })
                })
                .clone()
            }
        }
    }
}

/// Finds or makes the slot of these shapes and puts it first.
fn slot_for(recent: &Mutex<Vec<(Shapes, Arc<Slot>)>>, shapes: &Shapes) -> Arc<Slot> {
    let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
    let known = recent.iter().position(|(known, _)| known == shapes);
    let entry = match known {
        Some(index) => recent.remove(index),
        None => (shapes.clone(), Arc::default()),
    };
    let slot = entry.1.clone();
    recent.insert(0, entry);
    recent.truncate(REMEMBERED_SHAPES);
    slot
}

fn plan(model: &InferenceModel, shapes: &Shapes) -> TractResult<Plan> {
    let mut model = model.clone();
    for (index, shape) in shapes.iter().enumerate() {
        let mut fact = model.input_fact(index)?.clone();
        fact.shape =
            ShapeFactoid::from(shape.iter().map(|size| size.to_dim()).collect::<TVec<TDim>>());
        model.set_input_fact(index, fact)?;
    }
    model.into_optimized()?.into_runnable()
}

fn ones_for(fact: &InferenceFact) -> Option<TVec<usize>> {
    let rank = fact.shape.rank().concretize()? as usize;
    let dims = fact.shape.dims().take(rank);
    Some(
        dims.map(|dim| dim.concretize().and_then(|dim| dim.to_usize().ok()).unwrap_or(1)).collect(),
    )
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
