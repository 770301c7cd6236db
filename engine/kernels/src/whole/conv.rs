//! Convolutions by whole numbers.
//!
//! What must never live here: how bytes lie in cells.

use std::ops::Range;

use super::cells::{CELL, ImageCells, PlaneCells};
use super::{Grid, Layout, SumsRoom, Whole, WholeParts, fill_starts, start};
use crate::blocks::Blocks;
use crate::conv::{Geometry, Group, Images, SMALL_PLANE, size};
use crate::direct::{OfSums, Out, Shifts};
use crate::epilogue::{Epilogue, Steps};
use crate::gemm::{Left, tile_panels};
use crate::packed::{Packed, Scratch, ShapeError, ensure};
use crate::simd::{Kernel, Level, Simd};
use crate::team::{self, Room, Shared, Team, share_of};
use crate::tile::{Finish, PANEL, Start, Strip, Sums, Walk};

/// A convolution by whole numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeConv {
    geometry: Geometry,
    /// For each group.
    weights: Vec<Whole>,
}

impl WholeConv {
    /// As [`crate::Conv2d::new`]; see [`Whole::new`].
    pub fn new(geometry: Geometry, weights: &[f32], input: Grid) -> Option<WholeConv> {
        let (extent, k) = geometry.matrix().ok()?;
        let places = size(&geometry.kernel)?;
        let layout = Layout { sizes: [extent, k / places, places], steps: [k, places, 1] };
        let each = size(&[extent, k]).filter(|&each| each > 0)?;
        let weights = weights.chunks(each).map(|weights| Whole::new(layout, weights, input));
        WholeConv::packed(geometry, weights.collect::<Option<_>>()?).ok()
    }

    /// Takes the weights of [`WholeConv::weights`] as they are.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn packed(geometry: Geometry, weights: Vec<Whole>) -> Result<WholeConv, ShapeError> {
        let matrix = geometry.matrix()?;
        let inputs = (geometry.inputs / geometry.groups).div_ceil(CELL);
        let cells = size(&[inputs, geometry.kernel[0], geometry.kernel[1]]);
        ensure(weights.len() == geometry.groups, "groups of weights")?;
        let fit = |w: &Whole| (w.extent(), w.k()) == matrix && Some(w.parts().cells.k()) == cells;
        ensure(weights.iter().all(fit), "weights")?;
        Ok(WholeConv { geometry, weights })
    }

    /// The sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The weights, for each group.
    pub fn weights(&self) -> &[Whole] {
        &self.weights
    }

    /// As [`crate::Conv2d::run`], of an input of the grid it was made for.
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    pub fn run(
        &self,
        level: Level,
        images: Images<'_>,
        output: &mut [f32],
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        self.geometry.each_group(images, output, |number, group| {
            let whole = &self.weights[number];
            if self.geometry.is_pointwise() && group.size[0] * group.size[1] > SMALL_PLANE {
                whole.pointwise(level, group, &mut scratch.sums, team);
                Ok(())
            } else {
                self.windowed(level, whole, group, scratch, team)
            }
        })
    }

    fn windowed(
        &self,
        level: Level,
        whole: &Whole,
        group: Group<'_>,
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let Group { image, size, input: from, output, epilogue } = group;
        let g = &self.geometry;
        let channels = g.inputs / g.groups;
        let (cells, padded) = (channels.div_ceil(CELL), g.padded(channels, image)?);
        let row_step = cells * padded[1];
        let Scratch { image: room, offsets, sums } = scratch;
        let room = room.room(padded[0] * row_step);
        let (steps, to) = (whole.parts().input.steps(level, from), &mut *room);
        let turned = ImageCells { from, image, channels, pads: g.pads, padded, steps, to };
        // SAFETY: the kernel is of safe slices.
        unsafe { level.run(turned) };
        let seen = g.seen(size, room.as_ptr(), cells, (padded[1], row_step), offsets);
        whole.multiply(level, steps, &seen, Out::Planes, output, &epilogue, sums, team);
        Ok(())
    }
}

/// Columns of a plane that are turned into cells and used in blocks of so many of these, 32 KiB.
const BLOCK_CELLS: usize = 8 * 1024;

impl Whole {
    /// A convolution that sees one place of planes so large that columns fill vectors: what `direct` does would spend
    /// as long turning sums over. All sizes are checked.
    fn pointwise(&self, level: Level, group: Group<'_>, room: &mut SumsRoom, team: &dyn Team) {
        let Group { input, output, epilogue, .. } = group;
        let WholeParts { input: grid, k, cells, sums, scales, .. } = self.parts();
        let (plane, steps) = (input.len() / k, grid.steps(level, input));
        let sums = OfSums {
            sums: Sums::Bytes { fast: level.has_dots(), turned: true },
            starts: fill_starts(level, steps, sums, &mut room.starts),
            scales,
            shifts: None,
        };
        let step = tile_panels(level) * PANEL;
        let products = self.extent() * cells.k() * plane;
        let (c, parts) = (Shared::new(output), team::parts(team, products, plane.div_ceil(step)));
        team.share(parts, &|part, room| {
            let columns = share_of(part, parts, plane, step);
            let image = Plane { level, input, plane, steps, sums, epilogue: &epilogue };
            self.columns(&image, columns, c, room);
        });
    }

    /// The columns of [`Whole::pointwise`] that are given.
    fn columns(&self, image: &Plane<'_>, part: Range<usize>, c: Shared, room: &mut Room) {
        let Plane { level, input, plane, steps, sums, epilogue } = *image;
        let WholeParts { k, cells, shifts, .. } = self.parts();
        let step = tile_panels(level) * PANEL;
        let at_once = (BLOCK_CELLS / cells.k().max(1) / step * step).max(step);
        let Room { panels, pauses } = room;
        let (room, places) =
            panels.room(at_once * (cells.k() + 1)).split_at_mut(at_once * cells.k());
        for column in part.clone().step_by(at_once) {
            let columns = at_once.min(part.end - column);
            let (from, to) = (&input[column..], &mut *room);
            let turned = PlaneCells { from, plane, channels: *k, columns, steps, to };
            // SAFETY: the kernel is of safe slices.
            unsafe { level.run(turned) };
            let multiply = |weights: &Packed, starts: &[f32], c: *mut f32, c_step: usize| {
                for block in Blocks::new(weights.k()) {
                    let left = Left::weights(weights);
                    let strip = Strip {
                        a: left.at.wrapping_add(block.from * left.k_step),
                        row_step: left.row_step,
                        run: left.run,
                        run_step: left.run_step,
                        walk: Walk::Step(left.k_step),
                        sums: sums.sums,
                        rows: left.rows,
                        k: block.len,
                        b: room[block.from * PANEL..].as_ptr(),
                        b_step: PANEL,
                        panel_step: weights.k() * PANEL,
                        columns,
                        c,
                        c_step,
                        start: block.start(Some(Start::RowBias(starts.as_ptr()))),
                        finish: Finish::NONE,
                    };
                    // SAFETY: the caller has checked the sizes; the room is for whole panels of all cells.
                    unsafe { level.run(strip) };
                }
            };
            let mut finished = Finished {
                c: places.as_mut_ptr(),
                c_step: at_once,
                rows: 1,
                columns,
                sums: OfSums { scales: &[1.0], ..sums },
                bias: None,
                finish: Finish::NONE,
            };
            if let Some((by_vector, ones)) = shifts {
                multiply(ones, &[start(level, steps, *k as f32)], finished.c, at_once);
                // SAFETY: the room has a row for them.
                unsafe { level.run(finished) };
                finished.sums.shifts = Some(Shifts { by_vector, places: &*places });
            }
            multiply(cells, sums.starts, c.at(column), plane);
            let finished = Finished {
                c: c.at(column),
                c_step: plane,
                rows: self.extent(),
                sums: OfSums { scales: sums.scales, ..finished.sums },
                bias: epilogue.bias,
                finish: Finish::of(epilogue, column),
                ..finished
            };
            // SAFETY: the caller has checked the sizes.
            unsafe { level.run(finished) };
            pauses.pause();
        }
    }
}

/// What [`Whole::pointwise`] multiplies.
#[derive(Clone, Copy)]
struct Plane<'a> {
    level: Level,
    input: &'a [f32],
    /// Values of a channel.
    plane: usize,
    steps: Steps,
    sums: OfSums<'a>,
    epilogue: &'a Epilogue<'a>,
}

/// Makes values of whole sums where they lie, a vector's in a row, and finishes them.
#[derive(Clone, Copy)]
struct Finished<'a> {
    c: *mut f32,
    c_step: usize,
    rows: usize,
    columns: usize,
    sums: OfSums<'a>,
    bias: Option<&'a [f32]>,
    finish: Finish,
}

impl Kernel for Finished<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in 0..self.rows {
            let bias = self.bias.map_or(0.0, |bias| bias[row]);
            for column in (0..self.columns).step_by(PANEL) {
                let n = (self.columns - column).min(PANEL);
                let at = row * self.c_step + column;
                // SAFETY: the caller vouches for the output and the residual.
                unsafe {
                    let sums = S::Wide::load_first(self.c.add(at), n);
                    let v = self.sums.of_vector::<S::Wide>(sums, row, column, n, bias);
                    S::Wide::store_first(self.c.add(at), self.finish.apply::<S::Wide>(v, at, n), n);
                }
            }
        }
    }
}
