//! What happens to a sum before it is written: bias, residual, activation.

use crate::simd::Simd;

/// A function applied to every value of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// `max(0, x)`.
    Relu,
    /// `min(max, max(min, x))`.
    Clip {
        /// The lower bound.
        min: f32,
        /// The upper bound.
        max: f32,
    },
    /// `x * min(1, max(0, x / 6 + 1/2))`.
    HardSwish,
    /// `min(1, max(0, alpha * x + beta))`.
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at zero.
        beta: f32,
    },
    /// `x` where positive, else `alpha * x`.
    LeakyRelu(
        /// The slope below zero.
        f32,
    ),
    /// The nearest step.
    Steps(Steps),
}

/// Values that quantised ones stand for: whole multiples of `scale`, of two as near the even one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    /// The distance of two.
    pub scale: f32,
    /// The lowest, in steps from zero.
    pub least: f32,
    /// The highest; both are whole numbers within 2^22 of zero, and not less than the lowest.
    pub most: f32,
}

/// Adding and taking away 1.5 * 2^23 leaves no room for a fraction.
pub(crate) const WHOLE: f32 = 12_582_912.0;

/// Whether the residual is added before or after the activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResidualOrder {
    /// `activation(sum + bias + residual)`.
    #[default]
    BeforeActivation,
    /// `activation(sum + bias) + residual`.
    AfterActivation,
}

/// What is fused into the end of a convolution or a product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One value for each output channel of a convolution; for a product see the function.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape that is added.
    pub residual: Option<&'a [f32]>,
    /// Where the residual is added.
    pub order: ResidualOrder,
    /// The function applied.
    pub activation: Activation,
}

impl Activation {
    /// Applies the function to a vector.
    ///
    /// # Safety
    /// See [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(self, x: S::V) -> S::V {
        // SAFETY: register arithmetic only.
        unsafe {
            match self {
                Activation::None => x,
                Activation::Relu => S::max(S::zero(), x),
                Activation::Clip { min, max } => S::min(S::splat(max), S::max(S::splat(min), x)),
                Activation::HardSwish => {
                    let gate = S::fma(x, S::splat(1.0 / 6.0), S::splat(0.5));
                    S::mul(x, S::min(S::splat(1.0), S::max(S::zero(), gate)))
                }
                Activation::HardSigmoid { alpha, beta } => {
                    let gate = S::fma(x, S::splat(alpha), S::splat(beta));
                    S::min(S::splat(1.0), S::max(S::zero(), gate))
                }
                Activation::Steps(Steps { scale, least, most }) => {
                    let steps = S::div(x, S::splat(scale));
                    // What is no number is the lowest, where the vectors can say so.
                    let steps = S::min(S::splat(most), S::max(steps, S::splat(least)));
                    let whole = S::add(S::add(steps, S::splat(WHOLE)), S::splat(-WHOLE));
                    S::mul(whole, S::splat(scale))
                }
                Activation::LeakyRelu(alpha) => {
                    S::fma(S::splat(alpha), S::min(S::zero(), x), S::max(S::zero(), x))
                }
            }
        }
    }

    /// The bounds of a function that only bounds, the case worth fusing into registers.
    pub(crate) fn bounds(self) -> Option<(f32, f32)> {
        match self {
            Activation::None => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Clip { min, max } => Some((min, max)),
            _ => None,
        }
    }
}
