//! Bytes of values on steps, four to a cell, in the orders that products read them.
//!
//! What must never live here: sums.

use crate::epilogue::{Steps, WHOLE};
use crate::simd::{Kernel, Simd};
use crate::tile::PANEL;

/// Bytes of a cell.
pub(super) const CELL: usize = 4;

/// Adds the cells of a vector's whole numbers, `[channel][place]`, by groups of channels and by place; channels that are
/// not there are zero.
pub(super) fn to_cells(numbers: &[f32], places: usize, cells: &mut Vec<f32>) {
    if places == 1 {
        let whole = numbers.chunks_exact(CELL);
        let rest = whole.remainder();
        let bytes = |i: usize| rest.get(i).map_or(0, |number| *number as i8 as u8);
        cells.extend(whole.map(|of| of_bytes([0, 1, 2, 3].map(|i| of[i] as i8 as u8))));
        cells.extend((!rest.is_empty()).then(|| of_bytes([0, 1, 2, 3].map(bytes))));
        return;
    }
    for group in numbers.chunks(CELL * places.max(1)) {
        for place in 0..places {
            let mut bytes = [0; CELL];
            for (byte, number) in bytes.iter_mut().zip(group[place..].iter().step_by(places)) {
                *byte = *number as i8 as u8;
            }
            cells.push(of_bytes(bytes));
        }
    }
}

fn of_bytes(bytes: [u8; CELL]) -> f32 {
    f32::from_bits(u32::from_le_bytes(bytes))
}

/// Turns values on steps into bytes, counted from the lowest.
#[derive(Clone, Copy)]
struct Counted {
    inverse: f32,
    base: f32,
}

impl Counted {
    fn new(steps: Steps) -> Self {
        // The bits of 1.5 * 2^23 end in zeros; those of whole numbers above end in them.
        Self { inverse: steps.scale.recip(), base: WHOLE - steps.least }
    }

    #[inline(always)]
    fn byte(self, value: f32) -> u32 {
        (value * self.inverse + self.base).to_bits() & 0xff
    }
}

/// Cells of rows: `[rows][cells]` from `[rows][k]`.
pub(super) struct RowCells<'a> {
    pub from: &'a [f32],
    pub row_step: usize,
    pub rows: usize,
    pub k: usize,
    pub cells: usize,
    pub steps: Steps,
    pub to: &'a mut [f32],
}

impl Kernel for RowCells<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let counted = Counted::new(self.steps);
        for (row, to) in self.to.chunks_exact_mut(self.cells.max(1)).take(self.rows).enumerate() {
            let from = &self.from[row * self.row_step..][..self.k];
            let whole = from.chunks_exact(CELL);
            let rest = whole.remainder();
            for (values, to) in whole.zip(to.iter_mut()) {
                *to = cell::<S>([0, 1, 2, 3].map(|i| counted.byte(values[i])));
            }
            if !rest.is_empty() {
                // The weights there are zero.
                let values = [0, 1, 2, 3].map(|i| rest.get(i).map_or(0, |&v| counted.byte(v)));
                to[self.k / CELL] = cell::<S>(values);
            }
        }
    }
}

#[inline(always)]
fn cell<S: Simd>(bytes: [u32; CELL]) -> f32 {
    f32::from_bits((bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24) ^ S::FLIP)
}

/// Cells of an image with its pads: `[row][cell][column]` from `[channel][row][column]`.
pub(super) struct ImageCells<'a> {
    pub from: &'a [f32],
    pub image: [usize; 2],
    pub channels: usize,
    pub pads: [usize; 4],
    pub padded: [usize; 2],
    pub steps: Steps,
    pub to: &'a mut [f32],
}

impl Kernel for ImageCells<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { from, image: [height, width], channels, pads, padded, steps, to } = self;
        let counted = Counted::new(steps);
        let zero = cell::<S>([counted.byte(0.0); CELL]);
        let cells = channels.div_ceil(CELL);
        let row = cells * padded[1];
        to[..pads[0] * row].fill(zero);
        to[(pads[0] + height) * row..padded[0] * row].fill(zero);
        for (y, group) in (0..height).flat_map(|y| (0..cells).map(move |group| (y, group))) {
            let to = &mut to[(pads[0] + y) * row + group * padded[1]..][..padded[1]];
            to[..pads[1]].fill(zero);
            to[pads[1] + width..].fill(zero);
            // The weights of channels that are not there are zero.
            let [a, b, c, d] = [0, 1, 2, 3].map(|byte| {
                let channel = (group * CELL + byte).min(channels - 1);
                &from[(channel * height + y) * width..][..width]
            });
            let to = &mut to[pads[1]..][..width];
            for x in 0..width {
                to[x] = cell::<S>([a, b, c, d].map(|from| counted.byte(from[x])));
            }
        }
    }
}

/// One block of a plane's columns, with the channels' cells as vectors.
pub(super) struct PlaneCells<'a> {
    /// From the first column on.
    pub from: &'a [f32],
    pub plane: usize,
    pub channels: usize,
    pub columns: usize,
    pub steps: Steps,
    /// `[panel][cell][16]`.
    pub to: &'a mut [f32],
}

impl Kernel for PlaneCells<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let counted = Counted::new(self.steps);
        let cells = self.channels.div_ceil(CELL);
        let places = (0..self.columns).step_by(PANEL).flat_map(|x| (0..cells).map(move |c| (x, c)));
        for ((x, group), to) in places.zip(self.to.chunks_exact_mut(PANEL)) {
            let sources = [0, 1, 2, 3].map(|byte| {
                let channel = (group * CELL + byte).min(self.channels - 1);
                &self.from[channel * self.plane + x..]
            });
            let n = (self.columns - x).min(PANEL);
            if n == PANEL {
                let [a, b, c, d] = sources.map(|source| &source[..PANEL]);
                for lane in 0..PANEL {
                    let bytes = [a[lane], b[lane], c[lane], d[lane]];
                    to[lane] = cell::<S>(bytes.map(|value| counted.byte(value)));
                }
            } else {
                for lane in 0..n {
                    to[lane] = cell::<S>(sources.map(|source| counted.byte(source[lane])));
                }
            }
        }
    }
}
