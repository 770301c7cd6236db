//! Products of whole numbers: inputs that stand on steps by weights that are multiples of a scale, as quantised graphs
//! have them, four bytes of each at a time. Four neighbouring channels share a cell, so that an image of bytes has the
//! shape of one of floats with a quarter of the channels.
//!
//! What must never live here: the walk over an image (`direct.rs`), instructions.

mod cells;
mod conv;

use std::ops::Range;
use std::sync::Arc;

use crate::conv::size;
use crate::direct::{OfSums, Offsets, Out, Seen, Shifts, Weights, direct};
use crate::epilogue::{Epilogue, Steps, WHOLE};
use crate::gemm::check_output;
use crate::packed::{Packed, Scratch, ShapeError, View, ensure};
use crate::quantized::extremes;
use crate::simd::{Kernel, Level, Simd};
use crate::team::Team;
use crate::tile::{PANEL, Sums};
use cells::{CELL, RowCells, to_cells};

pub use conv::WholeConv;

/// Sums of so many products of a step, up to 255, and a weight, up to 128, are within 32 bits.
const MOST_K: usize = 1 << 16;

/// By how much a weight may be off a multiple of its scale, of itself: both were rounded once or twice.
const ROUNDED: f32 = 1.0 / (1 << 21) as f32;

/// What stands for a product's inputs, a byte each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grid {
    /// At most 256 steps, zero among them.
    Steps(Steps),
    /// Whole numbers that lie, as zero does, within 255 of each other: where is found at each run.
    Whole,
}

impl Grid {
    /// The steps that these values stand on.
    fn steps(self, level: Level, values: &[f32]) -> Steps {
        match self {
            Grid::Steps(steps) => steps,
            Grid::Whole => {
                let (least, most) = extremes(level, values);
                Steps { scale: 1.0, least, most }
            }
        }
    }
}

/// Vectors of whole numbers within 255 of each other and of zero, and what those are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole(WholeParts);

/// What a [`Whole`] is made of. The lists are by vector, as far as whole panels.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeParts {
    /// What the inputs stand on.
    pub input: Grid,
    /// The vectors' length.
    pub k: usize,
    /// Their whole numbers, shifted to between -128 and 127, four to a cell.
    pub cells: Packed,
    /// Their sums.
    pub sums: Arc<[f32]>,
    /// What one of a product's sum is worth.
    pub scales: Arc<[f32]>,
    /// Where not all are zero: by how much numbers are more than their cells', and one vector of ones.
    pub shifts: Option<(Arc<[f32]>, Packed)>,
}

/// Where the weights of a [`Whole`] stand: channel `c` of vector `v` at place `p` of a window at
/// `v * steps[0] + c * steps[1] + p * steps[2]`.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Vectors, their channels, and places of a window.
    pub sizes: [usize; 3],
    /// From one to the next.
    pub steps: [usize; 3],
}

impl Layout {
    /// Copies some vectors, one behind the other, channel by channel.
    fn gather(&self, weights: &[f32], vectors: Range<usize>, to: &mut [f32]) {
        let Layout { sizes: [_, channels, places], steps } = *self;
        let (k, count) = (channels * places, vectors.len());
        let each =
            (0..channels).flat_map(|c| (0..places).map(move |p| c * steps[1] + p * steps[2]));
        if steps[0] == 1 {
            // By lines of the cache that all vectors share.
            for (i, at) in each.enumerate() {
                let from = &weights[at + vectors.start..][..count];
                for (to, weight) in to[i..].iter_mut().step_by(k).zip(from) {
                    *to = *weight;
                }
            }
            return;
        }
        for (vector, to) in vectors.zip(to.chunks_exact_mut(k.max(1))) {
            for (to, at) in to.iter_mut().zip(each.clone()) {
                *to = weights[vector * steps[0] + at];
            }
        }
    }
}

impl Whole {
    /// Finds the whole numbers that weights stand for, for inputs of a grid; `None` where they stand for none of so few,
    /// or are too many for sums to be exact.
    pub fn new(layout: Layout, weights: &[f32], input: Grid) -> Option<Whole> {
        let Layout { sizes: [extent, channels, places], steps } = layout;
        let k = size(&[channels, places])?;
        let last = (0..3).try_fold(0usize, |last, axis| {
            last.checked_add(layout.sizes[axis].checked_sub(1)?.checked_mul(steps[axis])?)
        })?;
        let (scale_of_input, are_bytes) = match input {
            Grid::Steps(Steps { scale, least, most }) => {
                (scale, least <= 0.0 && most >= 0.0 && most - least <= 255.0)
            }
            Grid::Whole => (1.0, true),
        };
        if !are_bytes || k > MOST_K || last >= weights.len() {
            return None;
        }
        let groups = channels.div_ceil(CELL);
        let lanes = extent.next_multiple_of(PANEL);
        let [mut sums, mut scales, mut shifts] = [(); 3].map(|()| vec![0.0; lanes]);
        let mut cells = Vec::with_capacity(extent * groups * places);
        let mut vectors = vec![0.0; PANEL * k];
        // Most have one scale for all vectors.
        let mut scale = None;
        for first in (0..extent).step_by(PANEL) {
            layout.gather(weights, first..(first + PANEL).min(extent), &mut vectors);
            for (vector, numbers) in (first..extent).zip(vectors.chunks_exact_mut(k.max(1))) {
                let (found, least, most) = numbers_of(numbers, scale)?;
                let shift = if least < -128.0 || most > 127.0 { least + 128.0 } else { 0.0 };
                numbers.iter_mut().for_each(|number| *number -= shift);
                // At most 2^23: exact.
                sums[vector] = numbers.iter().sum();
                to_cells(numbers, places, &mut cells);
                (scales[vector], shifts[vector]) = (found * scale_of_input, shift);
                scale = Some(found);
            }
        }
        let pack = |extent: usize, cells: &[f32]| {
            Packed::new(extent, groups * places, cells, (groups * places, 1)).ok()
        };
        let cells = pack(extent, &cells)?;
        let shifts = if shifts.iter().any(|&shift| shift != 0.0) {
            let mut ones = Vec::new();
            to_cells(&vec![1.0; k], places, &mut ones);
            Some((shifts.into(), pack(1, &ones)?))
        } else {
            None
        };
        let (sums, scales) = (sums.into(), scales.into());
        Whole::of(WholeParts { input, k, cells, sums, scales, shifts }).ok()
    }

    /// Takes what [`Whole::parts`] gave before.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn of(parts: WholeParts) -> Result<Whole, ShapeError> {
        let WholeParts { k, cells, sums, scales, shifts, .. } = &parts;
        let lanes = cells.extent().next_multiple_of(PANEL);
        ensure((1..=MOST_K).contains(k) && k.div_ceil(CELL) <= cells.k(), "whole vectors")?;
        ensure(sums.len() == lanes && scales.len() == lanes, "vectors' sums or scales")?;
        let fit = |(shifts, ones): &(Arc<[f32]>, Packed)| {
            shifts.len() == lanes && (ones.extent(), ones.k()) == (1, cells.k())
        };
        ensure(shifts.as_ref().is_none_or(fit), "vectors' shifts")?;
        Ok(Whole(parts))
    }

    /// What [`Whole::of`] takes.
    pub fn parts(&self) -> &WholeParts {
        &self.0
    }

    /// How many vectors.
    pub fn extent(&self) -> usize {
        self.0.cells.extent()
    }

    /// Their length.
    pub fn k(&self) -> usize {
        self.0.k
    }

    /// As [`crate::linear`], with rows without gaps between their values.
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    #[expect(clippy::too_many_arguments, reason = "a product and what to do with it")]
    pub fn linear(
        &self,
        level: Level,
        rows: usize,
        a: View<'_>,
        c: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let (k, cells) = (self.k(), self.0.cells.k());
        ensure(a.column_step == 1 || k <= 1, "input of the product")?;
        ensure(a.covers(rows, k), "input of the product")?;
        check_output(rows, self.extent(), c, epilogue, self.extent())?;
        let Scratch { image, sums, .. } = scratch;
        let room = image.room(size(&[rows, cells]).ok_or(ShapeError("input"))?);
        let steps = self.0.input.steps(level, a.data);
        let (from, row_step, to) = (a.data, a.row_step, &mut *room);
        // SAFETY: the kernel is of safe slices.
        unsafe { level.run(RowCells { from, row_step, rows, k, cells, steps, to }) };
        let seen = Seen {
            at: room.as_ptr(),
            height: 1,
            width: rows,
            run_step: 0,
            step: cells,
            offsets: Offsets::Even(1),
        };
        self.multiply(level, steps, &seen, Out::Rows, c, epilogue, sums, team);
        Ok(())
    }

    /// The product with what is seen of cells, all of whose sizes are checked.
    #[expect(clippy::too_many_arguments, reason = "as `direct`")]
    fn multiply(
        &self,
        level: Level,
        steps: Steps,
        seen: &Seen<'_>,
        out: Out,
        c: &mut [f32],
        epilogue: &Epilogue<'_>,
        room: &mut SumsRoom,
        team: &dyn Team,
    ) {
        let WholeParts { k, cells, sums, scales, shifts, .. } = &self.0;
        let SumsRoom { starts, places } = room;
        let whole = OfSums {
            sums: Sums::Bytes { fast: level.has_dots(), turned: false },
            starts: fill_starts(level, steps, sums, starts),
            scales,
            shifts: None,
        };
        let Some((by_vector, ones)) = shifts else {
            let weights = Weights { packed: cells, whole: Some(whole) };
            return direct(level, weights, seen, out, c, epilogue, team);
        };
        let starts = &mut [0.0; PANEL];
        starts[0] = start(level, steps, *k as f32);
        let of_one = OfSums { starts, scales: &[1.0; PANEL], ..whole };
        places.resize(seen.height * seen.width, 0.0);
        let weights = Weights { packed: ones, whole: Some(of_one) };
        let plain = Epilogue::default();
        direct(level, weights, seen, Out::Planes, places, &plain, team);
        let whole = OfSums { shifts: Some(Shifts { by_vector, places }), ..whole };
        let weights = Weights { packed: cells, whole: Some(whole) };
        direct(level, weights, seen, out, c, epilogue, team);
    }
}

/// What products of whole numbers keep between calls, so that none allocates twice.
#[derive(Clone, Debug, Default)]
pub(crate) struct SumsRoom {
    starts: Vec<f32>,
    /// Sums of what each place sees.
    places: Vec<f32>,
}

/// What a sum starts from for its inputs to be counted from their zero: bytes are counted from the lowest step.
fn start(level: Level, steps: Steps, sum: f32) -> f32 {
    let zero = steps.least as i32 + if level.flips() { 128 } else { 0 };
    f32::from_bits(zero.wrapping_mul(sum as i32) as u32)
}

fn fill_starts<'a>(
    level: Level,
    steps: Steps,
    sums: &[f32],
    starts: &'a mut Vec<f32>,
) -> &'a [f32] {
    starts.clear();
    starts.extend(sums.iter().map(|&sum| start(level, steps, sum)));
    starts
}

/// Makes whole numbers of weights. Returns what they all are multiples of, `scale` where it is that, and the least and
/// the most times, zero among them, which lie within 255 of each other. `None`: there is none.
fn numbers_of(weights: &mut [f32], scale: Option<f32>) -> Option<(f32, f32, f32)> {
    let level = Level::best();
    let (least, most) = extremes(level, weights);
    let largest = most.max(-least);
    // Where all are zero any will do. What is no number fits none.
    let largest = if largest == 0.0 { 1.0 } else { largest };
    // Weights that are whole numbers stay as they are, so that their sums are those of integers.
    let found = scale.into_iter().chain([1.0]);
    let mut scales = found.chain((1..=255u8).map(|times| largest / f32::from(times)));
    let fit = |scale: &f32| {
        let inverse = scale.recip();
        // SAFETY: the kernel is of safe slices.
        whole(most * inverse) - whole(least * inverse) <= 255.0
            && unsafe { level.run(Multiples { weights, inverse }) }
    };
    let scale = scales.find(fit)?;
    let inverse = scale.recip();
    weights.iter_mut().for_each(|weight| *weight = whole(*weight * inverse));
    Some((scale, whole(least * inverse), whole(most * inverse)))
}

/// The nearest whole number to one of less than 2^22.
#[inline(always)]
fn whole(number: f32) -> f32 {
    (number + WHOLE) - WHOLE
}

/// Whether weights are whole multiples.
struct Multiples<'a> {
    weights: &'a [f32],
    inverse: f32,
}

impl Kernel for Multiples<'_> {
    type Output = bool;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        self.weights.chunks(32).all(|weights| {
            // Without a branch in between, so that the compiler makes vectors of it.
            let mut fit = true;
            for weight in weights {
                let (number, times) = (weight * self.inverse, whole(weight * self.inverse));
                fit &= (number - times).abs() <= times.abs() * ROUNDED;
            }
            fit
        })
    }
}

#[cfg(test)]
mod tests;
