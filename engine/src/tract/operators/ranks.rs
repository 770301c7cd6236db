//! Operators as tract has them, for inputs of the ranks that they need: of others, tract reads sizes
//! that are not there, or counts up to an axis that it never comes to.

use std::ops::Range;

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, checked_axis};
use super::theirs;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("BatchNormalization", |context, node| {
        checked(theirs::built(context, node)?, Need::Channels)
    });
    operators.insert("STFT", |context, node| {
        checked_with(theirs::built(context, node)?, Need::Rank(3), 1..2)
    });
    for name in ["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"] {
        operators.insert(name, |context, node| {
            let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(-1);
            checked(theirs::built(context, node)?, Need::Axis(axis))
        });
    }
}

/// The same operator, which refuses inputs of other ranks.
pub(super) fn checked(built: (Box<dyn InferenceOp>, Vec<String>), need: Need) -> Built {
    checked_with(built, need, 0..0)
}

/// And some inputs that are not one number each, as far as there are such.
pub(super) fn checked_with(
    built: (Box<dyn InferenceOp>, Vec<String>),
    need: Need,
    numbers: Range<usize>,
) -> Built {
    let inner = theirs::wired(&*built.0)?;
    Ok((expand(Checked { inner, need, numbers }), built.1))
}

/// What the first input has to have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    Channels,
    Axis(i64),
    Rank(i64),
}

#[derive(Debug, Clone)]
struct Checked {
    inner: Box<dyn Expansion>,
    need: Need,
    numbers: Range<usize>,
}

impl Expansion for Checked {
    fn name(&self) -> StaticName {
        self.inner.as_ref().name()
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
        // tract's rules come once this one has let them.
        solver.given(&inputs[0].rank, move |solver, rank| {
            match self.need {
                Need::Channels => ensure!(rank >= 2, "an input of rank {rank}, expected 2 or more"),
                Need::Rank(wanted) => {
                    ensure!(rank == wanted, "an input of rank {rank}, expected {wanted}")
                }
                Need::Axis(axis) => drop(checked_axis(axis, usize::try_from(rank)?)?),
            }
            // tract reads one where there is none, too.
            for input in inputs.iter().take(self.numbers.end).skip(self.numbers.start) {
                solver.given(&input.shape, |_, shape| {
                    let is_one = shape.iter().all(|size| size.as_i64() == Some(1));
                    ensure!(is_one, "an input of shape {shape:?}, expected one number");
                    Ok(())
                })?;
            }
            self.inner.as_ref().rules(solver, inputs, outputs)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.inner.as_ref().wire(prefix, model, inputs)
    }
}
