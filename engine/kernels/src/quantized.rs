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
    scale: Scale,
    quantized: &mut [T],
) -> Result<(), LengthMismatch> {
    if values.len() != quantized.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(Quantize { values, scale, quantized }) };
    Ok(())
}

/// What each of them stands for, at the given level.
///
/// # Errors
/// Where the lengths differ.
pub fn dequantize<T: Quantized>(
    level: Level,
    quantized: &[T],
    scale: Scale,
    values: &mut [f32],
) -> Result<(), LengthMismatch> {
    if values.len() != quantized.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: the kernel is of safe slices.
    unsafe { level.run(Dequantize { quantized, scale, values }) };
    Ok(())
}

struct Quantize<'a, T> {
    values: &'a [f32],
    scale: Scale,
    quantized: &'a mut [T],
}

impl<T: Quantized> Kernel for Quantize<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Scale { scale, zero } = self.scale;
        let (least, most) = (T::LEAST - zero, T::MOST - zero);
        // A plain loop: the compiler turns it into the level's vectors, and packs them.
        for (value, quantized) in self.values.iter().zip(self.quantized) {
            let steps = value / scale;
            // What is no number becomes the lowest.
            let steps = if steps > least { steps } else { least };
            let steps = if steps < most { steps } else { most };
            let whole = (steps + WHOLE) - WHOLE + zero;
            // SAFETY: between the lowest and the highest of 16 bits.
            *quantized = T::of(unsafe { whole.to_int_unchecked::<i32>() });
        }
    }
}

struct Dequantize<'a, T> {
    quantized: &'a [T],
    scale: Scale,
    values: &'a mut [f32],
}

impl<T: Quantized> Kernel for Dequantize<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Scale { scale, zero } = self.scale;
        for (quantized, value) in self.quantized.iter().zip(self.values) {
            *value = (quantized.number() - zero) * scale;
        }
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

    #[test]
    fn lengths_are_checked() {
        let scale = Scale { scale: 1.0, zero: 0.0 };
        assert_eq!(quantize::<u8>(Level::best(), &[1.0], scale, &mut []), Err(LengthMismatch));
        assert_eq!(dequantize::<u8>(Level::best(), &[], scale, &mut [1.0]), Err(LengthMismatch));
    }
}
