//! Maximum and average pooling of NCHW tensors, and the mean of whole planes.
//!
//! As for depthwise convolutions, a band of a plane is copied into scratch rows that carry their own pads. What must
//! never live here: windows with weights.

use crate::simd::{Kernel, Level, Simd};
use crate::window::{Layout, Window, WindowError};

/// What becomes of the values under a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their maximum; pads count for nothing. Whether one that is not a number shows in the result is not promised.
    Max,
    /// Their mean, over the values alone.
    Average,
    /// Their mean, where pads are zeros that count too (ONNX's `count_include_pad`).
    AverageWithPads,
}

/// A pooling of `[batch, channels, h, w]` tensors.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// The window.
    pub window: Window,
    /// What is computed.
    pub pooling: Pooling,
    /// Whether a last window that reaches beyond the trailing pad counts (ONNX's `ceil_mode`).
    pub ceil: bool,
}

impl Pool {
    /// Shape of the output for an input of `[batch, channels, h, w]`.
    ///
    /// # Errors
    /// [`WindowError::Input`] where the window makes no sense or does not fit.
    pub fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], WindowError> {
        let [batch, channels, h, w] = input;
        let output =
            if self.ceil { self.window.output_ceil(h, w) } else { self.window.output(h, w) };
        let [oh, ow] = output.ok_or(WindowError::Input)?;
        Ok([batch, channels, oh, ow])
    }

    /// Pools `x` of `shape` into `y` of [`Pool::output_shape`]. `scratch` is grown as needed.
    ///
    /// # Errors
    /// [`WindowError::Input`] or [`WindowError::Output`] where a slice has not the length its shape asks for;
    /// [`WindowError::TooLarge`] for absurd pads or dilations.
    pub fn run(
        &self,
        x: &[f32],
        shape: [usize; 4],
        y: &mut [f32],
        scratch: &mut Vec<f32>,
    ) -> Result<(), WindowError> {
        self.run_at(Level::best(), x, shape, y, scratch)
    }

    /// As [`Pool::run`], at a given level.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn run_at(
        &self,
        level: Level,
        x: &[f32],
        shape: [usize; 4],
        y: &mut [f32],
        scratch: &mut Vec<f32>,
    ) -> Result<(), WindowError> {
        let output = self.output_shape(shape)?;
        let length = |shape: [usize; 4]| shape.into_iter().try_fold(1usize, usize::checked_mul);
        if length(shape) != Some(x.len()) {
            return Err(WindowError::Input);
        }
        if length(output) != Some(y.len()) {
            return Err(WindowError::Output);
        }
        let level = if level.available() { level } else { Level::Scalar };
        let layout = Layout::new(
            self.window,
            [shape[2], shape[3]],
            [output[2], output[3]],
            level.lanes(),
            1,
        )?;
        let pad = if self.pooling == Pooling::Max { f32::NEG_INFINITY } else { 0.0 };
        scratch.clear();
        scratch.resize(layout.floats(), pad);
        let [down, mut across] =
            [self.shares(0, shape[2], output[2]), self.shares(1, shape[3], output[3])];
        across.resize(output[3].next_multiple_of(level.lanes()), 0.0);
        // SAFETY: every length was checked above.
        unsafe {
            level.run(Planes {
                layout: &layout,
                pad,
                x,
                y,
                rows: scratch.as_mut_ptr(),
                down,
                across,
            })
        };
        Ok(())
    }

    /// One over the number of taps that count, for each output position along `axis`.
    fn shares(&self, axis: usize, size: usize, outputs: usize) -> Vec<f32> {
        let before = self.window.pads[axis];
        let counted = match self.pooling {
            Pooling::AverageWithPads => 0..before + size + self.window.pads[axis + 2],
            _ => before..before + size,
        };
        let taps = |output: usize| {
            let start = output * self.window.strides[axis];
            let before =
                |end: usize| end.saturating_sub(start).div_ceil(self.window.dilations[axis]);
            before(counted.end).min(self.window.kernel[axis])
                - before(counted.start).min(self.window.kernel[axis])
        };
        (0..outputs).map(|output| 1.0 / taps(output) as f32).collect()
    }
}

/// All planes of one call, lengths checked.
struct Planes<'a> {
    layout: &'a Layout,
    pad: f32,
    x: &'a [f32],
    y: &'a mut [f32],
    /// A band of padded rows, filled with the pad.
    rows: *mut f32,
    /// For a mean: one over the taps that count in each output row, and in each output column, to a whole vector.
    down: Vec<f32>,
    across: Vec<f32>,
}

impl Kernel for Planes<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let layout = self.layout;
        let y = std::mem::take(&mut self.y);
        let (input, output) =
            (layout.input[0] * layout.input[1], layout.output[0] * layout.output[1]);
        for (plane, to) in self.x.chunks_exact(input).zip(y.chunks_exact_mut(output)) {
            let mut first = 0;
            while first < layout.output[0] {
                let count = layout.band.min(layout.output[0] - first);
                // SAFETY: the band lies in the plane, and the scratch holds a band.
                unsafe {
                    layout.fill::<S>(plane.as_ptr(), first, count, self.pad, self.rows);
                    let to = to.as_mut_ptr().add(first * layout.output[1]);
                    let down = &self.down[first..first + count];
                    match self.pad == f32::NEG_INFINITY {
                        true => self.band::<S, true>(down, to),
                        false => self.band::<S, false>(down, to),
                    }
                }
                first += count;
            }
        }
    }
}

impl Planes<'_> {
    /// Four vectors at a time, wherever in the band they lie.
    ///
    /// # Safety
    /// The machine has `S`; `to` has room for `down.len()` output rows, and the scratch holds what they need.
    #[inline(always)]
    unsafe fn band<S: Simd, const MAX: bool>(&self, down: &[f32], to: *mut f32) {
        let Layout { window, row_pitch, tap_columns, .. } = self.layout;
        let width = self.layout.output[1];
        let columns = width.div_ceil(S::LANES);
        let vectors = columns * down.len();
        let mut vector = 0;
        while vector < vectors {
            // SAFETY: the last vector is repeated where fewer than four are left, so all lie in the band.
            unsafe {
                let mut places = [(0, 0); 4];
                let mut from = [self.rows.cast_const(); 4];
                for i in 0..4 {
                    let v = (vector + i).min(vectors - 1);
                    places[i] = (v / columns, v % columns * S::LANES);
                    from[i] =
                        from[i].add(places[i].0 * window.strides[0] * row_pitch + places[i].1);
                }
                let mut results = [S::splat(self.pad); 4];
                for ky in 0..window.kernel[0] {
                    for column in tap_columns {
                        let tap = ky * window.dilations[0] * row_pitch + column;
                        for i in 0..4 {
                            let value = S::load(from[i].add(tap));
                            results[i] = if MAX {
                                S::max(results[i], value)
                            } else {
                                S::add(results[i], value)
                            };
                        }
                    }
                }
                for i in 0..(vectors - vector).min(4) {
                    let (row, x) = places[i];
                    if !MAX {
                        let share =
                            S::mul(S::splat(down[row]), S::load(self.across.as_ptr().add(x)));
                        results[i] = S::mul(results[i], share);
                    }
                    match width - x >= S::LANES {
                        true => S::store(to.add(row * width + x), results[i]),
                        false => S::store_first(to.add(row * width + x), results[i], width - x),
                    }
                }
            }
            vector += 4;
        }
    }
}

/// The mean of each plane: `x` of `[planes, plane]` into `y` of `[planes]`.
///
/// # Errors
/// [`WindowError::Input`] where `plane` is zero, [`WindowError::Output`] where `x` is not `y.len()` planes.
pub fn global_average(x: &[f32], plane: usize, y: &mut [f32]) -> Result<(), WindowError> {
    global_average_at(Level::best(), x, plane, y)
}

/// As [`global_average`], at a given level.
///
/// # Errors
/// As [`global_average`].
pub fn global_average_at(
    level: Level,
    x: &[f32],
    plane: usize,
    y: &mut [f32],
) -> Result<(), WindowError> {
    if plane == 0 {
        return Err(WindowError::Input);
    }
    if y.len().checked_mul(plane) != Some(x.len()) {
        return Err(WindowError::Output);
    }
    // SAFETY: the kernel takes slices and checks nothing more is needed of them.
    unsafe { level.run(Means { x, plane, y }) };
    Ok(())
}

struct Means<'a> {
    x: &'a [f32],
    plane: usize,
    y: &'a mut [f32],
}

impl Kernel for Means<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (plane, mean) in self.x.chunks_exact(self.plane).zip(self.y) {
            let mut sums = [0.0; 64];
            // SAFETY: loads stay inside the plane; no level has more than 16 lanes.
            unsafe {
                let mut lanes = [S::zero(); 4];
                let mut i = 0;
                while i + 4 * S::LANES <= plane.len() {
                    for (k, lane) in lanes.iter_mut().enumerate() {
                        *lane = S::add(*lane, S::load(plane.as_ptr().add(i + k * S::LANES)));
                    }
                    i += 4 * S::LANES;
                }
                while i < plane.len() {
                    let left = (plane.len() - i).min(S::LANES);
                    lanes[0] = S::add(lanes[0], S::load_first(plane.as_ptr().add(i), left));
                    i += left;
                }
                let sum = S::add(S::add(lanes[0], lanes[1]), S::add(lanes[2], lanes[3]));
                S::store(sums.as_mut_ptr(), sum);
            }
            *mean = sums[..S::LANES].iter().sum::<f32>() / self.plane as f32;
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
