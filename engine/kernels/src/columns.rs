//! Layer normalisation along an axis that is not the last, and matrices turned over.
//!
//! What must never live here: shapes beyond planes of so many rows and columns, normalisation of rows
//! (`elementwise.rs`).

use crate::elementwise::{LengthMismatch, load, spread, store};
use crate::simd::{Kernel, Level, Simd};
use crate::tile::PANEL;

/// Makes each column of each plane, `[gain.len(), width]`, `(x - mean) / sqrt(variance + epsilon) * gain + bias`.
///
/// # Errors
/// Where `values` is not whole planes, or `bias` has not the length of `gain`.
pub fn layer_norm_columns(
    values: &mut [f32],
    width: usize,
    gain: &[f32],
    bias: &[f32],
    epsilon: f32,
) -> Result<(), LengthMismatch> {
    layer_norm_columns_at(Level::best(), values, width, gain, bias, epsilon)
}

/// As [`layer_norm_columns`], at a given level.
///
/// # Errors
/// As [`layer_norm_columns`].
pub fn layer_norm_columns_at(
    level: Level,
    values: &mut [f32],
    width: usize,
    gain: &[f32],
    bias: &[f32],
    epsilon: f32,
) -> Result<(), LengthMismatch> {
    if values.is_empty() {
        return Ok(());
    }
    let plane = gain.len().checked_mul(width).filter(|&plane| plane > 0).ok_or(LengthMismatch)?;
    if !values.len().is_multiple_of(plane) || bias.len() != gain.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: whole planes, and a gain and a bias for each of their rows, checked above.
    unsafe { level.run(Norm { values, width, gain, bias, epsilon }) };
    Ok(())
}

struct Norm<'a> {
    values: &'a mut [f32],
    width: usize,
    gain: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let values = std::mem::take(&mut self.values);
        for plane in values.chunks_exact_mut(self.gain.len() * self.width) {
            let plane = plane.as_mut_ptr();
            let mut column = 0;
            while column < self.width {
                let left = self.width - column;
                // SAFETY: so many columns are left in the plane.
                unsafe {
                    let at = plane.add(column);
                    if left >= 4 * S::LANES {
                        self.columns::<S, 4>(at, S::LANES);
                        column += 4 * S::LANES;
                    } else {
                        self.columns::<S, 1>(at, left.min(S::LANES));
                        column += left.min(S::LANES);
                    }
                }
            }
        }
    }
}

impl Norm<'_> {
    /// `V` vectors side by side, the last of which has `n` lanes.
    ///
    /// # Safety
    /// They lie in the plane, and the machine has `S`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, at: *mut f32, n: usize) {
        let length = self.gain.len();
        // SAFETY: the caller's promise; lanes behind a last partial vector are not stored.
        unsafe {
            let mut sums = [S::zero(); V];
            for row in 0..length {
                for v in 0..V {
                    let value = load::<S>(at.add(row * self.width + v * S::LANES), n);
                    sums[v] = S::add(sums[v], value);
                }
            }
            let mut less = [S::zero(); V];
            for v in 0..V {
                less[v] = S::mul(sums[v], S::splat(-1.0 / length as f32));
            }
            // A second pass: the difference of squares would lose all digits where the mean is large.
            let mut squares = [S::zero(); V];
            for row in 0..length {
                for v in 0..V {
                    let value = load::<S>(at.add(row * self.width + v * S::LANES), n);
                    let off = S::add(value, less[v]);
                    squares[v] = S::fma(off, off, squares[v]);
                }
            }
            let mut factors = [S::zero(); V];
            for v in 0..V {
                let lanes = spread::<S>(squares[v]);
                let factor = |square: f32| 1.0 / (square / length as f32 + self.epsilon).sqrt();
                let lanes = lanes.map(factor);
                factors[v] = S::load(lanes.as_ptr());
            }
            for row in 0..length {
                let gain = S::splat(*self.gain.get_unchecked(row));
                let bias = S::splat(*self.bias.get_unchecked(row));
                for v in 0..V {
                    let place = at.add(row * self.width + v * S::LANES);
                    let off = S::add(load::<S>(place, n), less[v]);
                    store::<S>(place, S::fma(off, S::mul(factors[v], gain), bias), n);
                }
            }
        }
    }
}

/// Writes `from`, `[rows, columns]`, as `[columns, rows]`.
///
/// # Errors
/// Where one of them has another size.
pub fn transpose(
    from: &[f32],
    [rows, columns]: [usize; 2],
    to: &mut [f32],
) -> Result<(), LengthMismatch> {
    transpose_at(Level::best(), from, [rows, columns], to)
}

/// As [`transpose`], at a given level.
///
/// # Errors
/// As [`transpose`].
pub fn transpose_at(
    level: Level,
    from: &[f32],
    [rows, columns]: [usize; 2],
    to: &mut [f32],
) -> Result<(), LengthMismatch> {
    if rows.checked_mul(columns) != Some(from.len()) || to.len() != from.len() {
        return Err(LengthMismatch);
    }
    // SAFETY: both sizes were checked above.
    unsafe { level.run(Transpose { from, rows, columns, to }) };
    Ok(())
}

struct Transpose<'a> {
    from: &'a [f32],
    rows: usize,
    columns: usize,
    to: &'a mut [f32],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Transpose { from, rows, columns, to } = self;
        if rows < PANEL || columns < PANEL {
            for (row, line) in from.chunks_exact(columns.max(1)).enumerate() {
                for (column, value) in line.iter().enumerate() {
                    to[column * rows + row] = *value;
                }
            }
            return;
        }
        let (from, to) = (from.as_ptr(), to.as_mut_ptr());
        for column in (0..columns).step_by(PANEL) {
            // The last blocks lie over those before them, where sizes are not whole blocks.
            let column = column.min(columns - PANEL);
            for row in (0..rows).step_by(PANEL) {
                let row = row.min(rows - PANEL);
                // SAFETY: the block lies inside both.
                unsafe {
                    let from = from.add(row * columns + column);
                    S::Wide::transpose(from, columns, to.add(column * rows + row), rows);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
