//! Exponential, normal distribution, erf and tanh on vectors.
//!
//! The polynomials were computed by `tools/fit.py` (Remez exchange in 60 digits); the errors given are theirs, before
//! rounding. What must never live here: loops over memory.

#![expect(clippy::excessive_precision, reason = "digits as computed; f32 keeps what it can")]

use crate::epilogue::WHOLE;
use crate::simd::Simd;

/// Evaluates a polynomial, lowest coefficient first.
///
/// # Safety
/// See [`Simd`]; so for every function here.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::V, coefficients: [f32; N]) -> S::V {
    // SAFETY: register arithmetic only; so for every function here.
    unsafe {
        let mut sum = S::splat(coefficients[N - 1]);
        for c in coefficients.into_iter().rev().skip(1) {
            sum = S::fma(sum, x, S::splat(c));
        }
        sum
    }
}

#[inline(always)]
unsafe fn negate<S: Simd>(x: S::V) -> S::V {
    unsafe { S::mul(x, S::splat(-1.0)) }
}

#[inline(always)]
unsafe fn absolute<S: Simd>(x: S::V) -> S::V {
    unsafe { S::max(negate::<S>(x), x) }
}

/// `e^x`; zero and infinity beyond the range.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    /// Of `(e^r - 1 - r) / r^2` for `|r| <= ln(2) / 2`, error 4e-9 of `e^r`.
    const TAIL: [f32; 5] =
        [0.4999999308, 0.1666651487, 0.04166845171, 0.008369411928, 0.00138133819];
    unsafe {
        let x = S::min(S::splat(89.0), S::max(S::splat(-105.0), x));
        let n = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(WHOLE));
        let n = S::add(n, S::splat(-WHOLE));
        // ln 2 in two parts; the first has so few bits that its product with n is exact without a fused step too.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let tail = polynomial::<S, 5>(r, TAIL);
        let one = S::splat(1.0);
        S::scale(S::fma(S::mul(r, r), tail, S::add(r, one)), n)
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    unsafe { S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(negate::<S>(x)))) }
}

/// The normal distribution's tail behind `t >= 0`, over `e^(-t^2 / 2)`.
#[inline(always)]
unsafe fn scaled_tail<S: Simd>(t: S::V) -> S::V {
    /// In `u = 1 / (1 + t / 3)`, over `u`; relative error 2e-8 for `t <= 14.5`.
    const TAIL: [f32; 10] = [
        0.1329681337,
        0.1332818246,
        0.1151679375,
        0.1055717501,
        -0.00743179629,
        0.1250767185,
        -0.1485513876,
        0.03034053638,
        0.02242645865,
        -0.008850185427,
    ];
    unsafe {
        let u = S::div(S::splat(3.0), S::add(t, S::splat(3.0)));
        S::mul(u, polynomial::<S, 10>(u, TAIL))
    }
}

/// `e^(-x^2 * factor)`, where the rounding of the square is made good.
#[inline(always)]
unsafe fn bell<S: Simd>(x: S::V, factor: f32) -> S::V {
    unsafe {
        let square = S::mul(x, x);
        let lost = S::fma(x, x, negate::<S>(square));
        let e = exp::<S>(S::mul(square, S::splat(-factor)));
        S::fma(e, S::mul(lost, S::splat(-factor)), e)
    }
}

/// The normal distribution function: the share of values below `x`.
#[inline(always)]
pub(crate) unsafe fn normal<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let t = S::min(S::splat(14.5), absolute::<S>(x));
        let tail = S::mul(bell::<S>(t, 0.5), scaled_tail::<S>(t));
        S::pick(x, tail, S::add(S::splat(1.0), negate::<S>(tail)))
    }
}

/// The error function.
#[inline(always)]
pub(crate) unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    /// Of `erf(x) / x` in `x^2` for `|x| <= 1`, relative error 2e-9.
    const NEAR: [f32; 7] = [
        1.128379166,
        -0.3761262582,
        0.1128358515,
        -0.02685381199,
        0.005188327729,
        -0.0008010193659,
        7.853860632e-5,
    ];
    unsafe {
        let size = S::min(S::splat(10.0), absolute::<S>(x));
        let near = S::mul(x, polynomial::<S, 7>(S::mul(size, size), NEAR));
        let scaled = scaled_tail::<S>(S::mul(size, S::splat(std::f32::consts::SQRT_2)));
        let far = S::fma(S::mul(bell::<S>(size, 1.0), S::splat(-2.0)), scaled, S::splat(1.0));
        let far = S::pick(x, negate::<S>(far), far);
        S::pick(S::add(size, S::splat(-1.0)), near, far)
    }
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    /// Of `tanh(x) / x` in `x^2` for `|x| <= 5/8`, relative error 4e-9.
    const NEAR: [f32; 6] =
        [0.9999999961, -0.3333326053, 0.1333112756, -0.05372106882, 0.02059098943, -0.005659989159];
    unsafe {
        let size = S::min(S::splat(20.0), absolute::<S>(x));
        let near = S::mul(x, polynomial::<S, 6>(S::mul(size, size), NEAR));
        let e = exp::<S>(S::add(size, size));
        let far = S::div(S::splat(-2.0), S::add(e, S::splat(1.0)));
        let far = S::add(S::splat(1.0), far);
        let far = S::pick(x, negate::<S>(far), far);
        S::pick(S::add(size, S::splat(-0.625)), near, far)
    }
}
