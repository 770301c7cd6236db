//! Convolutions of 3 by 3 at every place by Winograd's minimal filtering, F(4 × 4, 3 × 3) of Lavin and Gray, "Fast
//! Algorithms for Convolutional Neural Networks" (2015): tiles of 4 by 4 outputs take 36 products a channel, not 144.
//!
//! The image's tiles and the weights are transformed, multiplied place by place as matrices, and transformed back.
//! Sums lose about two binary digits against the direct way. What must never live here: other kernels or strides.

use crate::conv::{Geometry, size};
use crate::direct::Turn;
use crate::epilogue::Epilogue;
use crate::gemm::linear;
use crate::packed::{Packed, Scratch, ShapeError, View, ensure};
use crate::simd::{Kernel, Level, Simd};
use crate::tile::{Finish, PANEL};

/// Outputs along a tile's side.
const TILE: usize = 4;
/// What a tile sees along its side, and in all.
const SEEN: usize = TILE + 2;
const PLACES: usize = SEEN * SEEN;

/// Transformed values of tiles at a time: 640 KiB, which stay in a second-level cache of a mebibyte.
const VALUES_AT_ONCE: usize = 160 * 1024;

/// With fewer channels the transforms cost more than the products that they save.
const MIN_CHANNELS: usize = 16;
/// With fewer tiles the transformed weights, four times as many, are read for too little.
const MIN_TILES: usize = 12;

/// A convolution of 3 by 3 with transformed weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Winograd {
    geometry: Geometry,
    /// For each place of a tile, `outputs` vectors of `inputs`.
    weights: Vec<Packed>,
}

impl Winograd {
    /// Whether it is quicker than [`crate::Conv2d`] for images of this size.
    pub fn pays(geometry: &Geometry, image: [usize; 2]) -> bool {
        let fits = fits(geometry) && geometry.inputs.min(geometry.outputs) >= MIN_CHANNELS;
        let Some([height, width]) = geometry.output(image).filter(|_| fits) else { return false };
        let tiles = height.div_ceil(TILE) * width.div_ceil(TILE);
        // At least seven of ten products are for outputs, not for what tiles have beyond them.
        tiles >= MIN_TILES && height * width * 10 >= tiles * TILE * TILE * 7
    }

    /// Transforms weights `[outputs, inputs, 3, 3]`.
    ///
    /// # Errors
    /// Another kernel, groups, strides or dilations, or sizes that do not fit together.
    pub fn new(geometry: Geometry, weights: &[f32]) -> Result<Winograd, ShapeError> {
        ensure(fits(&geometry), "kernel of a Winograd convolution")?;
        let Geometry { outputs, inputs, .. } = geometry;
        let pairs = outputs.checked_mul(inputs).ok_or(ShapeError("weights"))?;
        ensure(pairs.checked_mul(9) == Some(weights.len()), "weights")?;
        let mut places = vec![vec![0.0; pairs]; PLACES];
        for (pair, kernel) in weights.as_chunks::<9>().0.iter().enumerate() {
            for (place, value) in transformed(kernel).into_iter().enumerate() {
                places[place][pair] = value;
            }
        }
        let pack = |place: &Vec<f32>| Packed::new(outputs, inputs, place, (inputs, 1));
        Ok(Winograd { geometry, weights: places.iter().map(pack).collect::<Result<_, _>>()? })
    }

    /// As [`crate::Conv2d::run`].
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    #[expect(clippy::too_many_arguments, reason = "an image, its sizes and what to do with it")]
    pub fn run(
        &self,
        level: Level,
        batch: usize,
        image: [usize; 2],
        input: &[f32],
        output: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), ShapeError> {
        let g = &self.geometry;
        let size = g.check_run(batch, image, input, output, epilogue)?;
        if output.is_empty() || input.is_empty() {
            return Ok(());
        }
        let each = input.len() / batch;
        for (n, out) in output.chunks_exact_mut(g.outputs * size[0] * size[1]).enumerate() {
            let at = n * out.len();
            let residual = epilogue.residual.map(|residual| &residual[at..][..out.len()]);
            let epilogue = Epilogue { residual, ..*epilogue };
            self.run_one(level, image, size, &input[n * each..][..each], out, &epilogue, scratch)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one image of `run`")]
    fn run_one(
        &self,
        level: Level,
        image: [usize; 2],
        [height, width]: [usize; 2],
        input: &[f32],
        output: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), ShapeError> {
        let g = &self.geometry;
        let [down, across] = [height.div_ceil(TILE), width.div_ceil(TILE)];
        let channels = g.inputs.next_multiple_of(PANEL);
        let panels = g.outputs.div_ceil(PANEL);
        let turned = size(&[down * TILE + 2, across * TILE + 2, channels]);
        let turned = turned.filter(|&turned| turned <= u32::MAX as usize);
        let row = (across * TILE + 2) * channels;
        let turned = scratch.image.room(turned.ok_or(ShapeError("image is too large"))?);
        turned.fill(0.0);
        let at = g.pads[0] * row + g.pads[1] * channels;
        let enter = ChannelsLast { input, image, channels, to: &mut turned[at..], row };
        // SAFETY: its slices are checked as it writes.
        unsafe { level.run(enter) };

        let each = PLACES * (channels + g.outputs);
        let at_once = (VALUES_AT_ONCE / each).max(PANEL);
        let band = (at_once / across).clamp(1, down);
        let at_once = at_once.min(band * across);
        // A few more values than there are keep the places' planes from the same lines of the cache.
        let (seen_step, sum_step) = (at_once * channels + PANEL, at_once * g.outputs + PANEL);
        let strip = (band * TILE * width).next_multiple_of(PANEL) * panels * PANEL;
        let sums_at = (PLACES * seen_step).next_multiple_of(PANEL);
        let strip_at = (sums_at + PLACES * sum_step + PANEL).next_multiple_of(PANEL);
        let room = scratch.panels.room(strip_at + strip);
        let (seen, rest) = room.split_at_mut(sums_at);
        let (sums, strip) = rest.split_at_mut(strip_at - sums_at);

        for top in (0..down).step_by(band) {
            let tiles = band.min(down - top) * across;
            let rows = (band * TILE).min(height - top * TILE);
            for first in (0..tiles).step_by(at_once) {
                let count = at_once.min(tiles - first);
                let grid = Grid { first, count, across };
                let from = turned[top * TILE * row..].as_ptr();
                let to = seen.as_mut_ptr();
                let enter = Enter { grid, from, row, channels, to, step: seen_step };
                // SAFETY: the turned image has all that its tiles see; the room is for `at_once` tiles.
                unsafe { level.run(enter) };
                for (place, weights) in self.weights.iter().enumerate() {
                    let data = &seen[place * seen_step..][..count * channels];
                    let a = View { data, row_step: channels, column_step: 1 };
                    let sums = &mut sums[place * sum_step..][..count * g.outputs];
                    linear(level, count, a, weights, sums, &Epilogue::default())?;
                }
                let (from, to) = (sums.as_ptr(), strip.as_mut_ptr());
                let outputs = g.outputs;
                let leave = Leave { grid, from, step: sum_step, outputs, panels, rows, width, to };
                // SAFETY: the last sums have a panel's room behind them; the strip has all places of the band.
                unsafe { level.run(leave) };
            }
            let turn = Turn {
                sums: strip.as_ptr(),
                panels,
                columns: rows * width,
                first: 0,
                channels: g.outputs,
                place: top * TILE * width,
                plane: height * width,
                c: output.as_mut_ptr(),
                bias: epilogue.bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
                finish: Finish {
                    residual: epilogue.residual.map_or(std::ptr::null(), |r| r.as_ptr()),
                    order: epilogue.order,
                    activation: epilogue.activation,
                },
            };
            // SAFETY: the band lies inside the output, whose size was checked.
            unsafe { level.run(turn) };
        }
        Ok(())
    }
}

fn fits(geometry: &Geometry) -> bool {
    let Geometry { groups, kernel, strides, dilations, .. } = *geometry;
    groups == 1 && kernel == [3, 3] && strides == [1, 1] && dilations == [1, 1]
}

/// `G · kernel · Gᵀ`.
fn transformed(kernel: &[f32; 9]) -> [f32; PLACES] {
    let along = |a: f64, b: f64, c: f64| {
        let (even, odd) = (a + c, a / 4.0 + c);
        [
            a / 4.0,
            -(even + b) / 6.0,
            -(even - b) / 6.0,
            (odd + b / 2.0) / 6.0,
            (odd - b / 2.0) / 6.0,
            c,
        ]
    };
    let at = |y: usize, x: usize| f64::from(kernel[y * 3 + x]);
    let columns: [[f64; SEEN]; 3] = std::array::from_fn(|x| along(at(0, x), at(1, x), at(2, x)));
    let mut places = [0.0; PLACES];
    for y in 0..SEEN {
        let row = along(columns[0][y], columns[1][y], columns[2][y]);
        for x in 0..SEEN {
            places[y * SEEN + x] = row[x] as f32;
        }
    }
    places
}

/// Some tiles of a band, counted row by row.
#[derive(Clone, Copy)]
struct Grid {
    first: usize,
    count: usize,
    across: usize,
}

impl Grid {
    /// Row and column of a tile.
    fn place(&self, tile: usize) -> [usize; 2] {
        [(self.first + tile) / self.across, (self.first + tile) % self.across]
    }
}

/// Copies planes as `[row][column][channel]`, `row` values from one row to the next and `channels` from one column.
struct ChannelsLast<'a> {
    input: &'a [f32],
    image: [usize; 2],
    channels: usize,
    to: &'a mut [f32],
    row: usize,
}

impl Kernel for ChannelsLast<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let plane = self.image[0] * self.image[1];
        let mut block = [0.0f32; PANEL * PANEL];
        for (panel, planes) in self.input.chunks(PANEL * plane).enumerate() {
            let count = planes.len() / plane;
            for from in (0..plane).step_by(PANEL) {
                let n = (plane - from).min(PANEL);
                if n == PANEL && count == PANEL {
                    // SAFETY: 16 values of 16 planes, and a block of as many.
                    unsafe {
                        let from = planes.as_ptr().add(from);
                        S::Wide::transpose(from, plane, block.as_mut_ptr(), PANEL);
                    }
                } else {
                    for (channel, plane) in planes.chunks_exact(plane).enumerate() {
                        for (i, value) in plane[from..from + n].iter().enumerate() {
                            block[i * PANEL + channel] = *value;
                        }
                    }
                }
                for (i, values) in block.as_chunks::<PANEL>().0[..n].iter().enumerate() {
                    let (y, x) = ((from + i) / self.image[1], (from + i) % self.image[1]);
                    let at = y * self.row + x * self.channels + panel * PANEL;
                    self.to[at..at + PANEL].copy_from_slice(values);
                }
            }
        }
    }
}

/// Transforms what tiles see, `Bᵀ · seen · B`, into `[place][tile][channel]` with `step` from place to place.
struct Enter {
    grid: Grid,
    from: *const f32,
    row: usize,
    channels: usize,
    to: *mut f32,
    step: usize,
}

impl Kernel for Enter {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in 0..self.grid.count {
            let [y, x] = self.grid.place(tile);
            let from = y * TILE * self.row + x * TILE * self.channels;
            let to = tile * self.channels;
            let mut channel = 0;
            while channel < self.channels {
                // SAFETY: the caller vouches for all that the tiles see and for room for them.
                unsafe {
                    self.one::<S::Wide>(self.from.add(from + channel), self.to.add(to + channel));
                }
                channel += PANEL;
            }
        }
    }
}

impl Enter {
    #[inline(always)]
    unsafe fn one<S: Simd>(&self, from: *const f32, to: *mut f32) {
        // SAFETY: as for `run`.
        unsafe {
            let mut half = [[S::zero(); SEEN]; SEEN];
            for x in 0..SEEN {
                let mut column = [S::zero(); SEEN];
                for y in 0..SEEN {
                    column[y] = S::load(from.add(y * self.row + x * self.channels));
                }
                half[x] = enter::<S>(column);
            }
            for y in 0..SEEN {
                let mut row = [S::zero(); SEEN];
                for x in 0..SEEN {
                    row[x] = half[x][y];
                }
                let row = enter::<S>(row);
                for x in 0..SEEN {
                    S::store(to.add((y * SEEN + x) * self.step), row[x]);
                }
            }
        }
    }
}

/// `Bᵀ · d`.
#[inline(always)]
unsafe fn enter<S: Simd>(d: [S::V; SEEN]) -> [S::V; SEEN] {
    // SAFETY: register arithmetic only.
    unsafe {
        let minus = |a, b| S::fma(b, S::splat(-1.0), a);
        let (a, b) = (S::fma(d[2], S::splat(-4.0), d[4]), S::fma(d[1], S::splat(-4.0), d[3]));
        let (c, e) = (minus(d[4], d[2]), minus(d[3], d[1]));
        [
            S::fma(d[0], S::splat(4.0), S::fma(d[2], S::splat(-5.0), d[4])),
            S::add(a, b),
            minus(a, b),
            S::fma(e, S::splat(2.0), c),
            S::fma(e, S::splat(-2.0), c),
            S::fma(d[1], S::splat(4.0), S::fma(d[3], S::splat(-5.0), d[5])),
        ]
    }
}

/// Transforms sums `[place][tile][channel]` back, `Aᵀ · sums · A`, into a strip `[output place][panel][channel]` of
/// `rows` by `width` places.
struct Leave {
    grid: Grid,
    from: *const f32,
    step: usize,
    outputs: usize,
    panels: usize,
    rows: usize,
    width: usize,
    to: *mut f32,
}

impl Kernel for Leave {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in 0..self.grid.count {
            let place = self.grid.place(tile).map(|at| at * TILE);
            for panel in 0..self.panels {
                // SAFETY: the caller vouches for the sums, a panel's room behind them, and the strip.
                unsafe { self.one::<S::Wide>(tile, panel, place) };
            }
        }
    }
}

impl Leave {
    #[inline(always)]
    unsafe fn one<S: Simd>(&self, tile: usize, panel: usize, [top, left]: [usize; 2]) {
        // SAFETY: as for `run`; places outside the strip are not written.
        unsafe {
            let from = self.from.add(tile * self.outputs + panel * PANEL);
            let mut half = [[S::zero(); TILE]; SEEN];
            for x in 0..SEEN {
                let mut column = [S::zero(); SEEN];
                for y in 0..SEEN {
                    column[y] = S::load(from.add((y * SEEN + x) * self.step));
                }
                half[x] = leave::<S>(column);
            }
            for y in 0..TILE.min(self.rows.saturating_sub(top)) {
                let mut row = [S::zero(); SEEN];
                for x in 0..SEEN {
                    row[x] = half[x][y];
                }
                let row = leave::<S>(row);
                for x in 0..TILE.min(self.width - left) {
                    let at = (top + y) * self.width + left + x;
                    S::store(self.to.add((at * self.panels + panel) * PANEL), row[x]);
                }
            }
        }
    }
}

/// `Aᵀ · m`.
#[inline(always)]
unsafe fn leave<S: Simd>(m: [S::V; SEEN]) -> [S::V; TILE] {
    // SAFETY: register arithmetic only.
    unsafe {
        let minus = |a, b| S::fma(b, S::splat(-1.0), a);
        let (p, q) = (S::add(m[1], m[2]), minus(m[1], m[2]));
        let (r, s) = (S::add(m[3], m[4]), minus(m[3], m[4]));
        [
            S::add(S::add(m[0], p), r),
            S::fma(s, S::splat(2.0), q),
            S::fma(r, S::splat(4.0), p),
            S::fma(s, S::splat(8.0), S::add(q, m[5])),
        ]
    }
}
