//! Functions of single values, and of rows: softmax and layer normalisation.
//!
//! What must never live here: shapes beyond "so many rows of so many values" (broadcasting is the caller's), and the
//! approximations themselves (`elementwise_math.rs`).

#[path = "elementwise_math.rs"]
mod math;

use crate::epilogue::Activation;
use crate::simd::{Kernel, Level, Simd};

/// Slices whose lengths do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthMismatch;

impl std::fmt::Display for LengthMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lengths do not go together")
    }
}

impl std::error::Error for LengthMismatch {}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// One that convolutions and products can fuse.
    Activation(Activation),
    /// `e^x`.
    Exp,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
    /// `x` times the normal distribution function of `x`.
    Gelu,
    /// GELU's approximation by tanh: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// The error function.
    Erf,
    /// The hyperbolic tangent.
    Tanh,
}

/// Applies `function` to every value.
pub fn apply(function: Function, values: &mut [f32]) {
    apply_at(Level::best(), function, values)
}

/// As [`apply`], at a given level.
pub fn apply_at(level: Level, function: Function, values: &mut [f32]) {
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(Apply { function, values }) }
}

/// `y = a + b`.
///
/// # Errors
/// Where the lengths differ.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) -> Result<(), LengthMismatch> {
    add_at(Level::best(), a, b, y)
}

/// As [`add()`], at a given level.
///
/// # Errors
/// As [`add()`].
pub fn add_at(level: Level, a: &[f32], b: &[f32], y: &mut [f32]) -> Result<(), LengthMismatch> {
    if a.len() != y.len() || b.len() != y.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: equal lengths, checked above.
    unsafe { level.run(Add { a, b, y }) };
    Ok(())
}

/// Multiplies each plane of `values` (`[scales.len(), plane]`) by its own scale.
///
/// # Errors
/// Where `values` is not one plane for each scale.
pub fn scale_planes(values: &mut [f32], scales: &[f32]) -> Result<(), LengthMismatch> {
    scale_planes_at(Level::best(), values, scales)
}

/// As [`scale_planes`], at a given level.
///
/// # Errors
/// As [`scale_planes`].
pub fn scale_planes_at(
    level: Level,
    values: &mut [f32],
    scales: &[f32],
) -> Result<(), LengthMismatch> {
    if values.is_empty() {
        return Ok(());
    }
    if scales.is_empty() || !values.len().is_multiple_of(scales.len()) {
        return Err(LengthMismatch);
    }
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(ScalePlanes { values, scales }) };
    Ok(())
}

/// Makes each row of `row` values its softmax.
///
/// # Errors
/// Where `values` is not whole rows.
pub fn softmax(values: &mut [f32], row: usize) -> Result<(), LengthMismatch> {
    softmax_at(Level::best(), values, row)
}

/// As [`softmax`], at a given level.
///
/// # Errors
/// As [`softmax`].
pub fn softmax_at(level: Level, values: &mut [f32], row: usize) -> Result<(), LengthMismatch> {
    if values.is_empty() {
        return Ok(());
    }
    if row == 0 || !values.len().is_multiple_of(row) {
        return Err(LengthMismatch);
    }
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(Softmax { values, row }) };
    Ok(())
}

/// Makes each row of `gain.len()` values `(x - mean) / sqrt(variance + epsilon) * gain + bias`.
///
/// # Errors
/// Where `values` is not whole rows, or `bias` has not the length of `gain`.
pub fn layer_norm(
    values: &mut [f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
) -> Result<(), LengthMismatch> {
    layer_norm_at(Level::best(), values, gain, bias, epsilon)
}

/// As [`layer_norm`], at a given level.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_at(
    level: Level,
    values: &mut [f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
) -> Result<(), LengthMismatch> {
    if values.is_empty() {
        return Ok(());
    }
    let whole = !gain.is_empty() && values.len().is_multiple_of(gain.len());
    if !whole || bias.is_some_and(|bias| bias.len() != gain.len()) {
        return Err(LengthMismatch);
    }
    // SAFETY: bias and gain have a row's length, checked above.
    unsafe { level.run(LayerNorm { values, gain, bias, epsilon }) };
    Ok(())
}

/// Runs the body for each vector of `0..len`: `x` is its start, `n` its lanes.
macro_rules! each_vector {
    ($len:expr, |$x:ident, $n:ident| $body:block) => {
        let len = $len;
        let mut $x = 0;
        while $x < len {
            let $n = (len - $x).min(S::LANES);
            $body
            $x += $n;
        }
    };
}

/// # Safety
/// `p` points at `n <= LANES` values.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { S::load(p) } else { S::load_first(p, n) } }
}

/// # Safety
/// `p` points at `n <= LANES` values.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { S::store(p, v) } else { S::store_first(p, v, n) } }
}

/// The lanes of `v`, the first `LANES` of the array.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(crate) unsafe fn spread<S: Simd>(v: S::V) -> [f32; 16] {
    const { assert!(S::LANES <= 16) };
    let mut lanes = [0.0; 16];
    // SAFETY: no more than 16 lanes.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes
}

struct Apply<'a> {
    function: Function,
    values: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = self.values.as_mut_ptr();
        // The loop stands inside each arm, so that constants stay in registers.
        macro_rules! all {
            (|$v:ident| $result:expr) => {{
                // SAFETY: vectors lie in the slice.
                each_vector!(self.values.len(), |x, n| {
                    unsafe {
                        let $v = load::<S>(p.add(x), n);
                        store::<S>(p.add(x), $result, n);
                    }
                });
            }};
        }
        match self.function {
            Function::Activation(activation) => all!(|v| activation.apply::<S>(v)),
            Function::Exp => all!(|v| math::exp::<S>(v)),
            Function::Sigmoid => all!(|v| math::sigmoid::<S>(v)),
            Function::Silu => all!(|v| S::mul(v, math::sigmoid::<S>(v))),
            Function::Gelu => all!(|v| S::mul(v, math::normal::<S>(v))),
            Function::GeluTanh => all!(|v| {
                // (1 + tanh(u)) / 2 is the sigmoid of 2u.
                let inner = S::fma(
                    S::mul(v, v),
                    S::splat(2.0 * 0.797_884_6 * 0.044_715),
                    S::splat(2.0 * 0.797_884_6),
                );
                S::mul(v, math::sigmoid::<S>(S::mul(v, inner)))
            }),
            Function::Erf => all!(|v| math::erf::<S>(v)),
            Function::Tanh => all!(|v| math::tanh::<S>(v)),
        }
    }
}

struct Add<'a> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (a, b, y) = (self.a.as_ptr(), self.b.as_ptr(), self.y.as_mut_ptr());
        each_vector!(self.y.len(), |x, n| {
            // SAFETY: three slices of one length.
            unsafe {
                store::<S>(y.add(x), S::add(load::<S>(a.add(x), n), load::<S>(b.add(x), n)), n)
            }
        });
    }
}

struct ScalePlanes<'a> {
    values: &'a mut [f32],
    scales: &'a [f32],
}

impl Kernel for ScalePlanes<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let plane = self.values.len() / self.scales.len();
        for (values, scale) in self.values.chunks_exact_mut(plane).zip(self.scales) {
            let p = values.as_mut_ptr();
            // SAFETY: vectors lie in the plane.
            each_vector!(values.len(), |x, n| {
                unsafe { store::<S>(p.add(x), S::mul(load::<S>(p.add(x), n), S::splat(*scale)), n) }
            });
        }
    }
}

struct Softmax<'a> {
    values: &'a mut [f32],
    row: usize,
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.values.chunks_exact_mut(self.row) {
            let p = row.as_mut_ptr();
            // SAFETY: vectors lie in the row; the lanes behind a last partial vector never join a sum or a maximum.
            unsafe {
                let mut most = S::splat(f32::NEG_INFINITY);
                let whole = row.len() / S::LANES * S::LANES;
                each_vector!(whole, |x, _n| { most = S::max(most, S::load(p.add(x))) });
                let mut max = f32::NEG_INFINITY;
                for value in spread::<S>(most)[..S::LANES].iter().chain(&row[whole..]) {
                    max = max.max(*value);
                }
                let shift = S::splat(-max);
                let mut sums = S::zero();
                let mut sum = 0.0;
                each_vector!(row.len(), |x, n| {
                    let e = math::exp::<S>(S::add(load::<S>(p.add(x), n), shift));
                    store::<S>(p.add(x), e, n);
                    if n == S::LANES {
                        sums = S::add(sums, e);
                    } else {
                        sum = row[x..].iter().sum::<f32>();
                    }
                });
                sum += spread::<S>(sums)[..S::LANES].iter().sum::<f32>();
                each_vector!(row.len(), |x, n| {
                    store::<S>(p.add(x), S::mul(load::<S>(p.add(x), n), S::splat(1.0 / sum)), n)
                });
            }
        }
    }
}

struct LayerNorm<'a> {
    values: &'a mut [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let length = self.gain.len();
        let gain = self.gain.as_ptr();
        for row in self.values.chunks_exact_mut(length) {
            let p = row.as_mut_ptr();
            // SAFETY: vectors lie in the row, which gain and bias are as long as.
            unsafe {
                let mut sums = S::zero();
                each_vector!(length, |x, n| { sums = S::add(sums, load::<S>(p.add(x), n)) });
                let mean = spread::<S>(sums)[..S::LANES].iter().sum::<f32>() / length as f32;
                // A second pass: the difference of squares would lose all digits where the mean is large.
                let mut squares = S::zero();
                each_vector!(length, |x, n| {
                    if n == S::LANES {
                        let off = S::add(S::load(p.add(x)), S::splat(-mean));
                        squares = S::fma(off, off, squares);
                    }
                });
                let mut square = spread::<S>(squares)[..S::LANES].iter().sum::<f32>();
                for value in &row[length / S::LANES * S::LANES..] {
                    square += (value - mean) * (value - mean);
                }
                let factor = 1.0 / (square / length as f32 + self.epsilon).sqrt();
                each_vector!(length, |x, n| {
                    let off = S::add(load::<S>(p.add(x), n), S::splat(-mean));
                    let bias = match self.bias {
                        Some(bias) => load::<S>(bias.as_ptr().add(x), n),
                        None => S::zero(),
                    };
                    let scaled = S::mul(load::<S>(gain.add(x), n), S::splat(factor));
                    store::<S>(p.add(x), S::fma(off, scaled, bias), n);
                });
            }
        }
    }
}

#[cfg(test)]
#[path = "elementwise_tests.rs"]
mod tests;
