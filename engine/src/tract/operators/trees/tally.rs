//! What a row's leaves add up to.

use tract_onnx::tract_hir::internal::*;

use super::super::scores::Real;
use super::ensemble::Weight;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

impl Aggregate {
    /// # Errors
    /// Not one of ONNX's names.
    pub(super) fn parse(name: &str) -> TractResult<Self> {
        Ok(match name {
            "SUM" => Self::Sum,
            "AVERAGE" => Self::Average,
            "MIN" => Self::Min,
            "MAX" => Self::Max,
            _ => bail!("unknown aggregate_function {name:?}"),
        })
    }
}

/// A row's outputs before the transform, and which of them any leaf had a weight for.
#[derive(Debug)]
pub(super) struct Tally<T> {
    pub(super) scores: Vec<T>,
    pub(super) scored: Vec<bool>,
}

impl<T: Real> Tally<T> {
    pub(super) fn new(outputs: usize) -> Self {
        Self { scores: vec![T::default(); outputs], scored: vec![false; outputs] }
    }

    pub(super) fn clear(&mut self) {
        self.scores.fill(T::default());
        self.scored.fill(false);
    }

    /// Adds them where there is one for each output.
    pub(super) fn add_bases(&mut self, bases: &[f64]) {
        if bases.len() == self.scores.len() {
            for (score, &base) in self.scores.iter_mut().zip(bases) {
                *score = *score + T::from_f64(base);
            }
        }
    }

    /// Outputs that no leaf had a weight for.
    pub(super) fn clear_unscored(&mut self) {
        for (score, &scored) in self.scores.iter_mut().zip(&self.scored) {
            if !scored {
                *score = T::default();
            }
        }
    }

    pub(super) fn take_in(&mut self, aggregate: Aggregate, weights: &[Weight<T>]) {
        for weight in weights {
            let output = weight.output as usize;
            let (score, scored) = (&mut self.scores[output], &mut self.scored[output]);
            let is_better = match aggregate {
                Aggregate::Sum | Aggregate::Average => {
                    *score = *score + weight.value;
                    false
                }
                Aggregate::Min => !*scored || weight.value < *score,
                Aggregate::Max => !*scored || weight.value > *score,
            };
            if is_better {
                *score = weight.value;
            }
            *scored = true;
        }
    }
}
