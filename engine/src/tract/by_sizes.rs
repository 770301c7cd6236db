//! Plans by the sizes of the inputs, and where a graph computes with their values as if they were
//! sizes, by those: one for each of the last few asked for. tract's convolutions are generated for
//! concrete sizes only: the same network planned with a symbolic batch takes seven times as long.

use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::konst::Const;

use super::chain;
use super::fuse::{self, PackedWeights};
use super::plans::{Plan, Shapes, shapes, too_large};
use crate::graph::Failure;
use crate::once::Once;

/// Plans remembered for a graph with free sizes; the one unused longest goes first.
const REMEMBERED_PLANS: usize = 8;

/// Shapes of which is remembered what they need.
const REMEMBERED_LEVELS: usize = 64;

/// Elements of an input that may be made a constant: a shape, axes, sizes, a scalar.
const MAX_PARAMETER_ELEMENTS: usize = 64;

#[derive(Debug)]
pub(super) struct BySizes {
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
pub(super) struct Asked {
    shapes: Shapes,
    constants: Vec<(usize, Arc<Tensor>)>,
}

/// A plan being made or made: callers for the same shape wait for one making of it.
type Slot = Once<Result<Arc<Plan>, Failure>>;

impl BySizes {
    /// `first` is a plan that is made already.
    pub(super) fn new(
        model: InferenceModel,
        packed: PackedWeights,
        (parameters, level): (Vec<Vec<usize>>, usize),
        first: Option<(Asked, Plan)>,
    ) -> Self {
        let slot = |plan| Arc::new(Once::made(Ok(Arc::new(plan))));
        let recent = first.map(|(asked, plan)| (asked, slot(plan))).into_iter().collect();
        let (model, levels, recent) = (Box::new(model), Mutex::default(), Mutex::new(recent));
        Self { model, packed, parameters, level, levels, recent }
    }

    /// The plan for these inputs, if it is made.
    pub(super) fn made(&self, inputs: &[Arc<Tensor>]) -> Option<Arc<Plan>> {
        let asked = self.asked(self.level_of(&shapes(inputs)), inputs);
        self.slot_for(&asked).get()?.ok()
    }

    /// The plan for these inputs, made now where there is none yet.
    ///
    /// # Errors
    /// The graph cannot take them; it takes too much memory to find out.
    pub(super) fn make(&self, inputs: &[Arc<Tensor>]) -> Result<Arc<Plan>, Failure> {
        let shapes = shapes(inputs);
        let level = self.level_of(&shapes);
        let mut found = self.at_level(level, inputs);
        for higher in level + 1..self.parameters.len() {
            if found.is_ok() {
                break;
            }
            let other = self.at_level(higher, inputs);
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

    fn asked(&self, level: usize, inputs: &[Arc<Tensor>]) -> Asked {
        let small = |&&index: &&usize| inputs[index].len() <= MAX_PARAMETER_ELEMENTS;
        let constants = self.parameters[level].iter().filter(small);
        let constants = constants.map(|&index| (index, inputs[index].clone()));
        Asked { shapes: shapes(inputs), constants: constants.collect() }
    }

    fn at_level(&self, level: usize, inputs: &[Arc<Tensor>]) -> Result<Arc<Plan>, Failure> {
        let asked = self.asked(level, inputs);
        let make = || {
            let plan = asked.plan(&self.model, &self.packed).map_err(|error| {
                let (shapes, why) = (&asked.shapes, chain(&error));
                Failure::Refused(format!(
                    "the graph cannot take inputs of shapes {shapes:?}: {why}"
                ))
            });
            plan.map(Arc::new)
        };
        self.slot_for(&asked).get_or_make(Err(too_large()), make)
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

impl Asked {
    pub(super) fn shapes(shapes: Shapes) -> Self {
        Self { shapes, constants: Vec::new() }
    }

    fn plan(&self, model: &InferenceModel, packed: &PackedWeights) -> TractResult<Plan> {
        Plan::new(self.fuse(model, packed)?, self.constants.iter().map(|(index, _)| *index))
    }

    /// The model for what is asked, with our operators, before tract's own optimisation.
    pub(super) fn fuse(
        &self,
        model: &InferenceModel,
        packed: &PackedWeights,
    ) -> TractResult<TypedModel> {
        let mut model = model.clone();
        for (index, shape) in self.shapes.iter().enumerate() {
            let mut fact = model.input_fact(index)?.clone();
            fact.shape =
                ShapeFactoid::from(shape.iter().map(|size| size.to_dim()).collect::<TVec<TDim>>());
            model.set_input_fact(index, fact)?;
        }
        for (index, constant) in &self.constants {
            let outlet = model.input_outlets()?[*index];
            let node = model.node_mut(outlet.node);
            node.op = Box::new(Const::new(constant.clone())?);
            let mut fact = InferenceFact::dt_shape(constant.datum_type(), constant.shape());
            fact.value = constant.clone().into();
            node.outputs[0].fact = fact;
        }
        let constants: Vec<usize> = self.constants.iter().map(|(index, _)| *index).collect();
        let mut index = 0;
        model.inputs.retain(|_| {
            index += 1;
            !constants.contains(&(index - 1))
        });
        fuse::fuse(model.into_typed()?, packed)
    }
}
