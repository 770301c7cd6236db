//! Convolutions of 3 by 3 at every place by Winograd's minimal filtering, F(4 × 4, 3 × 3) of Lavin and Gray, "Fast
//! Algorithms for Convolutional Neural Networks" (2015): tiles of 4 by 4 outputs take 36 products a channel, not 144.
//!
//! The image's tiles and the weights are transformed, multiplied place by place as matrices, and transformed back.
//! Sums lose about two binary digits against the direct way. What must never live here: other kernels or strides.

mod transforms;

use crate::conv::{Geometry, Group, Images, size};
use crate::direct::Turn;
use crate::epilogue::Epilogue;
use crate::gemm::linear;
use crate::packed::{Packed, Scratch, ShapeError, View, ensure};
use crate::simd::Level;
use crate::team::{self, Alone, Room, Shared, Team, share_of};
use crate::tile::{Finish, PANEL};
use transforms::{ChannelsLast, Enter, Grid, Leave};

/// Outputs along a tile's side.
const TILE: usize = 4;
/// What a tile sees along its side, and in all.
const SEEN: usize = TILE + 2;
const PLACES: usize = SEEN * SEEN;

/// Transformed values of tiles at a time: 640 KiB, which stay in a second-level cache of a mebibyte.
const VALUES_AT_ONCE: usize = 160 * 1024;

/// With fewer channels the transforms cost more than the products that they save.
const MIN_CHANNELS: usize = 16;
/// With fewer tiles the transformed weights, four times as many, are read for too little ...
const MIN_TILES: usize = 12;
/// ... where they are more than a second-level cache holds: 2 MiB. Else so many tiles are enough.
const FEW_VALUES: usize = 512 * 1024;
const MIN_TILES_OF_FEW: usize = 4;

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
        let values = geometry.inputs.saturating_mul(geometry.outputs).saturating_mul(PLACES);
        let enough = if values <= FEW_VALUES { MIN_TILES_OF_FEW } else { MIN_TILES };
        // At least seven of ten products are for outputs, not for what tiles have beyond them.
        tiles >= enough && height * width * 10 >= tiles * TILE * TILE * 7
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

    /// Takes the weights of [`Winograd::weights`] as they are.
    ///
    /// # Errors
    /// As [`Winograd::new`].
    pub fn packed(geometry: Geometry, weights: Vec<Packed>) -> Result<Winograd, ShapeError> {
        ensure(fits(&geometry), "kernel of a Winograd convolution")?;
        let matrix = (geometry.outputs, geometry.inputs);
        ensure(weights.len() == PLACES, "places of weights")?;
        ensure(weights.iter().all(|w| (w.extent(), w.k()) == matrix), "weights")?;
        Ok(Winograd { geometry, weights })
    }

    /// The sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The transformed weights, one matrix for each place of a tile.
    pub fn weights(&self) -> &[Packed] {
        &self.weights
    }

    /// As [`crate::Conv2d::run`].
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
        self.geometry
            .each_group(images, output, |_, group| self.run_one(level, group, scratch, team))
    }

    fn run_one(
        &self,
        level: Level,
        group: Group<'_>,
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let Group { image, size: [height, width], input, output, epilogue } = group;
        let g = &self.geometry;
        let [down, across] = [height.div_ceil(TILE), width.div_ceil(TILE)];
        let channels = g.inputs.next_multiple_of(PANEL);
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
        // Wide bands, as each reads all weights.
        let most = (2 * team.width()).min(down);
        let parts = team::parts(team, PLACES * g.inputs * g.outputs * down * across, most);
        let band = (at_once / across).min(down.div_ceil(parts)).clamp(1, down);
        let at_once = at_once.min(band * across);
        let (turned, output) = (&*turned, Shared::new(output));
        let (size, epilogue) = ([height, width], &epilogue);
        let image = Image { level, turned, row, channels, size, band, at_once, output, epilogue };
        let bands = down.div_ceil(band);
        let parts = parts.min(bands);
        team.share(parts, &|part, room| {
            let share = share_of(part, parts, bands, 1);
            share.for_each(|number| self.run_band(&image, number * band, room));
        });
        Ok(())
    }

    /// The band of tiles that begins with row `top` of them.
    fn run_band(&self, image: &Image<'_>, top: usize, Room { panels: room, pauses }: &mut Room) {
        let Image { level, turned, row, channels, size, band, at_once, output, epilogue } = *image;
        let [height, width] = size;
        let [down, across] = size.map(|side| side.div_ceil(TILE));
        let outputs = self.geometry.outputs;
        let panels = outputs.div_ceil(PANEL);
        // A few more values than there are keep the places' planes from the same lines of the cache.
        let (seen_step, sum_step) = (at_once * channels + PANEL, at_once * outputs + PANEL);
        let strip = (band * TILE * width).next_multiple_of(PANEL) * panels * PANEL;
        let sums_at = (PLACES * seen_step).next_multiple_of(PANEL);
        let strip_at = (sums_at + PLACES * sum_step + PANEL).next_multiple_of(PANEL);
        let (seen, rest) = room.room(strip_at + strip).split_at_mut(sums_at);
        let (sums, strip) = rest.split_at_mut(strip_at - sums_at);
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
                let sums = &mut sums[place * sum_step..][..count * outputs];
                linear(level, count, a, weights, sums, &Epilogue::default(), &Alone::default())
                    .expect("the room is as large as its parts");
            }
            let (from, to) = (sums.as_ptr(), strip.as_mut_ptr());
            let leave = Leave { grid, from, step: sum_step, outputs, panels, rows, width, to };
            // SAFETY: the last sums have a panel's room behind them; the strip has all places of the band.
            unsafe { level.run(leave) };
            pauses.pause();
        }
        let turn = Turn {
            sums: strip.as_ptr(),
            panels,
            columns: rows * width,
            first: 0,
            channels: outputs,
            place: top * TILE * width,
            plane: height * width,
            c: output.at(0),
            whole: None,
            bias: epilogue.bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
            finish: Finish::of(epilogue, 0),
        };
        // SAFETY: the band lies inside the output, whose size was checked, and is no other part's.
        unsafe { level.run(turn) };
    }
}

/// One image on its way through the filter.
#[derive(Clone, Copy)]
struct Image<'a> {
    level: Level,
    /// As `[row][column][channel]`, with its pads.
    turned: &'a [f32],
    row: usize,
    channels: usize,
    /// Of the output.
    size: [usize; 2],
    /// Rows of tiles in a band.
    band: usize,
    /// Tiles.
    at_once: usize,
    output: Shared,
    epilogue: &'a Epilogue<'a>,
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
