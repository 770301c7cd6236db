//! Quantised values: whole numbers of 8 or 16 bits, each of which stands for `(q - zero) * scale`.

use crate::elementwise::LengthMismatch;
use crate::epilogue::WHOLE;
use crate::simd::{Kernel, Level, Simd};

/// A whole number that stands for a float.
pub trait Quantized: Copy + Send + Sync + 'static {
    /// The lowest.
    const LEAST: f32;
    /// The highest.
    const MOST: f32;
    /// The number itself, which is one of these.
    fn of(whole: i32) -> Self;
    /// Itself as a float.
    fn number(self) -> f32;
}

macro_rules! quantized {
    ($($of:ident),*) => {$(
        impl Quantized for $of {
            const LEAST: f32 = $of::MIN as f32;
            const MOST: f32 = $of::MAX as f32;

            #[inline(always)]
            fn of(whole: i32) -> Self {
                whole as Self
            }

            #[inline(always)]
            fn number(self) -> f32 {
                f32::from(self)
            }
        }
    )*};
}
quantized!(u8, i8, u16, i16);

/// What a quantised value stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The distance of what two neighbours stand for.
    pub scale: f32,
    /// What stands for zero.
    pub zero: f32,
}

/// The nearest of all `T` for each value, of two as near the even one, at the given level.
///
/// # Errors
/// Where the lengths differ.
pub fn quantize<T: Quantized>(
    level: Level,
    values: &[f32],
    Scale { scale, zero }: Scale,
    quantized: &mut [T],
) -> Result<(), LengthMismatch> {
    each(level, values, quantized, |value| nearest(value / scale, zero))
}

/// As [`quantize`], but of two as near the one that is even with its zero.
///
/// # Errors
/// Where the lengths differ.
pub fn quantize_with_zero<T: Quantized>(
    level: Level,
    values: &[f32],
    Scale { scale, zero }: Scale,
    quantized: &mut [T],
) -> Result<(), LengthMismatch> {
    each(level, values, quantized, |value| nearest(value / scale + zero, 0.0))
}

/// The nearest of all `T` for each sum of products of whole numbers, times `factor`.
///
/// # Errors
/// Where the lengths differ.
pub fn requantize<T: Quantized>(
    level: Level,
    sums: &[f32],
    factor: f32,
    zero: f32,
    quantized: &mut [T],
) -> Result<(), LengthMismatch> {
    each(level, sums, quantized, |sum| nearest(sum * factor, zero))
}

/// What each of them stands for, at the given level.
///
/// # Errors
/// Where the lengths differ.
pub fn dequantize<T: Quantized>(
    level: Level,
    quantized: &[T],
    Scale { scale, zero }: Scale,
    values: &mut [f32],
) -> Result<(), LengthMismatch> {
    each(level, quantized, values, |quantized| (quantized.number() - zero) * scale)
}

/// The sums of what two lists stand for, quantised.
///
/// # Errors
/// Where the lengths differ.
pub fn add<T: Quantized>(
    level: Level,
    (a, of_a): (&[T], Scale),
    (b, of_b): (&[T], Scale),
    of_sum: Scale,
    sums: &mut [T],
) -> Result<(), LengthMismatch> {
    // As ONNX Runtime: another order rounds another way.
    let (a_ratio, b_ratio) = (of_a.scale / of_sum.scale, of_b.scale / of_sum.scale);
    let fixed = of_sum.zero - a_ratio.mul_add(of_a.zero, b_ratio * of_b.zero);
    each_pair(level, a, b, sums, |a, b| {
        nearest(a.number().mul_add(a_ratio, b.number().mul_add(b_ratio, fixed)), 0.0)
    })
}

/// The sums of what a list stands for and what one number does, quantised.
///
/// # Errors
/// Where the lengths differ.
pub fn add_one<T: Quantized>(
    level: Level,
    (a, of_a): (&[T], Scale),
    (b, of_b): (T, Scale),
    of_sum: Scale,
    sums: &mut [T],
) -> Result<(), LengthMismatch> {
    let (a_ratio, b_ratio) = (of_a.scale / of_sum.scale, of_b.scale / of_sum.scale);
    let fixed = of_sum.zero - a_ratio.mul_add(of_a.zero, b_ratio * of_b.zero);
    let fixed = fixed + b.number() * b_ratio;
    each(level, a, sums, |a| nearest(a.number().mul_add(a_ratio, fixed), 0.0))
}

/// The products of what two lists stand for, quantised.
///
/// # Errors
/// Where the lengths differ.
pub fn multiply<T: Quantized>(
    level: Level,
    (a, of_a): (&[T], Scale),
    (b, of_b): (&[T], Scale),
    of_product: Scale,
    products: &mut [T],
) -> Result<(), LengthMismatch> {
    let ratio = of_a.scale * of_b.scale / of_product.scale;
    each_pair(level, a, b, products, |a, b| {
        let product = (a.number() - of_a.zero) * (b.number() - of_b.zero);
        nearest(product * ratio + of_product.zero, 0.0)
    })
}

/// The lowest and the highest value, and zero.
pub fn extremes(level: Level, values: &[f32]) -> (f32, f32) {
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(Extremes { values }) }
}

/// The scale and zero point by which bytes hold all from `least`, zero or below, to `most`, zero or
/// above.
pub fn scale_of(least: f32, most: f32) -> Scale {
    let range = f32::from(u8::MAX);
    let scale = if least == most { 1.0 } else { (most - least) / range };
    let zero = -least / scale;
    // As ONNX Runtime, also where that is no number: an infinity, or a range that has no scale.
    let zero = if zero < range { zero.max(0.0).round_ties_even() } else { range };
    Scale { scale, zero }
}

/// The nearest whole number, and `zero` more, within what `T` holds. What is no number is the lowest.
#[inline(always)]
fn nearest<T: Quantized>(steps: f32, zero: f32) -> T {
    // What is too large to be rounded like this is beyond all `T`.
    let whole = (steps + WHOLE) - WHOLE + zero;
    let whole = if whole > T::LEAST { whole } else { T::LEAST };
    let whole = if whole < T::MOST { whole } else { T::MOST };
    // SAFETY: between the lowest and the highest of 16 bits, as neither is passed over by what is no
    // number.
    T::of(unsafe { whole.to_int_unchecked::<i32>() })
}

fn each<I: Copy, O>(
    level: Level,
    from: &[I],
    to: &mut [O],
    function: impl Fn(I) -> O,
) -> Result<(), LengthMismatch> {
    if from.len() != to.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(Each { from, to, function }) };
    Ok(())
}

fn each_pair<I: Copy, O>(
    level: Level,
    a: &[I],
    b: &[I],
    to: &mut [O],
    function: impl Fn(I, I) -> O,
) -> Result<(), LengthMismatch> {
    if a.len() != to.len() || b.len() != to.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(EachPair { a, b, to, function }) };
    Ok(())
}

// Plain loops: the compiler turns them into the level's vectors, and packs those.

struct Each<'a, I, O, F> {
    from: &'a [I],
    to: &'a mut [O],
    function: F,
}

impl<I: Copy, O, F: Fn(I) -> O> Kernel for Each<'_, I, O, F> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (from, to) in self.from.iter().zip(self.to) {
            *to = (self.function)(*from);
        }
    }
}

struct EachPair<'a, I, O, F> {
    a: &'a [I],
    b: &'a [I],
    to: &'a mut [O],
    function: F,
}

impl<I: Copy, O, F: Fn(I, I) -> O> Kernel for EachPair<'_, I, O, F> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for ((a, b), to) in self.a.iter().zip(self.b).zip(self.to) {
            *to = (self.function)(*a, *b);
        }
    }
}

struct Extremes<'a> {
    values: &'a [f32],
}

impl Kernel for Extremes<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f32) {
        // One of each for a lane, which the compiler keeps in vectors.
        let (mut least, mut most) = ([0f32; 16], [0f32; 16]);
        let lanes = self.values.chunks_exact(16);
        let rest = lanes.remainder().chunks(1);
        for values in lanes.chain(rest) {
            for ((value, least), most) in values.iter().zip(&mut least).zip(&mut most) {
                *least = if value < least { *value } else { *least };
                *most = if value > most { *value } else { *most };
            }
        }
        (least.into_iter().fold(0.0, f32::min), most.into_iter().fold(0.0, f32::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_the_book<T: Quantized>(value: f32, Scale { scale, zero }: Scale) -> T {
        let steps = (value / scale).round_ties_even() + zero;
        T::of(steps.clamp(T::LEAST, T::MOST) as i32)
    }

    fn check<T: Quantized + PartialEq + std::fmt::Debug>(zero: f32) {
        let scale = Scale { scale: 0.25, zero };
        let ends = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0, -0.0];
        // Each second one lies between two steps.
        let halves = (-600..600).map(|i| i as f32 * 0.125);
        let values: Vec<f32> = ends.into_iter().chain(halves).collect();
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            let mut quantized = vec![T::of(0); values.len()];
            quantize(level, &values, scale, &mut quantized).expect("equal lengths");
            let mut back = vec![0.0; values.len()];
            dequantize(level, &quantized, scale, &mut back).expect("equal lengths");
            for ((value, got), back) in values.iter().zip(&quantized).zip(back) {
                assert_eq!(*got, by_the_book(*value, scale), "{level:?}: {value}");
                assert_eq!(back, (got.number() - zero) * 0.25, "{level:?}: {value}");
            }
            let mut none = [T::of(0)];
            quantize(level, &[f32::NAN], scale, &mut none).expect("equal lengths");
            assert_eq!(none[0].number(), T::LEAST, "{level:?}");
            for odd in [f32::NAN, f32::INFINITY, -1e30] {
                let scale = Scale { scale: 1.0, zero: odd };
                quantize(level, &[1.0], scale, &mut none).expect("equal lengths");
                let wanted = if odd > 0.0 { T::MOST } else { T::LEAST };
                assert_eq!(none[0].number(), wanted, "{level:?}: a zero point of {odd}");
            }
        }
    }

    #[test]
    fn the_nearest_step_is_taken() {
        check::<u8>(0.0);
        check::<u8>(255.0);
        check::<i8>(-128.0);
        check::<i8>(3.0);
        check::<u16>(32_768.0);
        check::<i16>(-7.0);
    }

    /// What every level must make of all pairs of bytes.
    #[test]
    fn sums_and_products_are_rounded_once() {
        let bytes: Vec<u8> = (0..=255).collect();
        let a: Vec<u8> = bytes.iter().flat_map(|a| [*a; 256]).collect();
        let b = bytes.repeat(256);
        let of_a = Scale { scale: 0.5, zero: 128.0 };
        let of_b = Scale { scale: 0.25, zero: 3.0 };
        let of_y = Scale { scale: 1.0, zero: 101.0 };
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            let mut sums = vec![0u8; a.len()];
            add(level, (&a, of_a), (&b, of_b), of_y, &mut sums).expect("equal lengths");
            let mut products = sums.clone();
            multiply(level, (&a, of_a), (&b, of_b), of_y, &mut products).expect("equal lengths");
            for (at, (a, b)) in a.iter().zip(&b).enumerate() {
                let [x, y] =
                    [(a, of_a), (b, of_b)].map(|(q, of)| (q.number() - of.zero) * of.scale);
                // Exact numbers, so that the order is all the same.
                let wanted = |exact: f32| (exact + 101.0).round_ties_even().clamp(0.0, 255.0) as u8;
                assert_eq!(sums[at], wanted(x + y), "{level:?}: {a} + {b}");
                assert_eq!(products[at], wanted(x * y), "{level:?}: {a} * {b}");
            }
            let mut one = vec![0u8; 256];
            add_one(level, (&bytes, of_a), (7, of_b), of_y, &mut one).expect("equal lengths");
            let all: Vec<u8> = (0..256).map(|a| sums[a * 256 + 7]).collect();
            assert_eq!(one, all, "{level:?}");
        }
    }

    #[test]
    fn extremes_hold_zero() {
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            let mut values: Vec<f32> = (1..100).map(|i| i as f32).collect();
            assert_eq!(extremes(level, &values), (0.0, 99.0), "{level:?}");
            values[40] = -7.5;
            values[98] = -8.0;
            assert_eq!(extremes(level, &values), (-8.0, 98.0), "{level:?}");
            assert_eq!(extremes(level, &[]), (0.0, 0.0), "{level:?}");
        }
    }

    #[test]
    fn lengths_are_checked() {
        let scale = Scale { scale: 1.0, zero: 0.0 };
        assert_eq!(quantize::<u8>(Level::best(), &[1.0], scale, &mut []), Err(LengthMismatch));
        assert_eq!(dequantize::<u8>(Level::best(), &[], scale, &mut [1.0]), Err(LengthMismatch));
    }
}
