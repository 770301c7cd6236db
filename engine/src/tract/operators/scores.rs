//! What classifiers and regressors make of their scores, as ONNX Runtime has it where the
//! specification is silent.

use tract_onnx::tract_hir::internal::*;

/// What is computed with: `f32`, or `f64` where the inputs or the attributes are doubles.
pub(super) trait Real:
    Datum
    + Copy
    + PartialOrd
    + Default
    + std::ops::Add<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::Sub<Output = Self>
{
    const INFINITY: Self;
    const NEG_INFINITY: Self;
    const NAN: Self;
    const ONE: Self;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn is_nan(self) -> bool;
    fn next_down(self) -> Self;
    fn exp(self) -> Self;
}

macro_rules! real {
    ($type:ident) => {
        impl Real for $type {
            const INFINITY: Self = $type::INFINITY;
            const NEG_INFINITY: Self = $type::NEG_INFINITY;
            const NAN: Self = $type::NAN;
            const ONE: Self = 1.0;
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            fn next_down(self) -> Self {
                self.next_down()
            }
            fn exp(self) -> Self {
                self.exp()
            }
        }
    };
}

real!(f32);
real!(f64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl PostTransform {
    /// # Errors
    /// Not one of ONNX's names.
    pub(super) fn parse(name: &str) -> TractResult<Self> {
        Ok(match name {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            _ => bail!("unknown post_transform {name:?}"),
        })
    }

    pub(super) fn apply<T: Real>(self, scores: &mut [T]) {
        match self {
            Self::None => {}
            Self::Softmax => softmax(scores),
            Self::Logistic => scores.iter_mut().for_each(|score| *score = logistic(*score)),
            Self::SoftmaxZero => softmax_zero(scores),
            Self::Probit => scores.iter_mut().for_each(|score| *score = probit(*score)),
        }
    }
}

fn largest<T: Real>(scores: &[T]) -> T {
    let larger = |largest, &score| if score > largest { score } else { largest };
    scores.iter().fold(T::NEG_INFINITY, larger)
}

fn softmax<T: Real>(scores: &mut [T]) {
    let largest = largest(scores);
    let mut sum = T::default();
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
        sum = sum + *score;
    }
    scores.iter_mut().for_each(|score| *score = *score / sum);
}

/// Softmax of the scores that are not zero; zeros stay zero.
fn softmax_zero<T: Real>(scores: &mut [T]) {
    let largest = largest(scores);
    let mut sum = T::default();
    for score in scores.iter_mut() {
        if score.to_f64().abs() > 1e-7 {
            *score = (*score - largest).exp();
            sum = sum + *score;
        } else {
            *score = T::default();
        }
    }
    scores.iter_mut().for_each(|score| *score = *score / sum);
}

pub(super) fn logistic<T: Real>(score: T) -> T {
    let magnitude = if score < T::default() { score } else { -score };
    let upper = T::ONE / (T::ONE + magnitude.exp());
    if score < T::default() { T::ONE - upper } else { upper }
}

/// The normal distribution's quantile, by Winitzki's approximation of the inverse error
/// function (a = 0.147), as ONNX Runtime has it.
pub(super) fn probit<T: Real>(score: T) -> T {
    let x = 2.0 * score.to_f64() - 1.0;
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let half = 2.0 / (3.14159 * 0.147) + 0.5 * log;
    let root = (-half + (half * half - log / 0.147).sqrt()).sqrt();
    T::from_f64(std::f64::consts::SQRT_2 * if x < 0.0 { -root } else { root })
}

/// The first of the largest.
pub(super) fn largest_index<T: Real>(scores: &[T]) -> usize {
    let larger =
        |best: usize, index: usize| if scores[index] > scores[best] { index } else { best };
    (1..scores.len()).fold(0, larger)
}

/// Two classes' scores where only the second's is known.
pub(super) fn pair_of<T: Real>(score: T, transform: PostTransform) -> [T; 2] {
    let score = if transform == PostTransform::Logistic { logistic(score) } else { score };
    [T::ONE - score, score]
}
