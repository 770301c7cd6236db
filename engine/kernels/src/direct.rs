//! Products whose broadcast operand is an image: the weights are the vectors, so planes of any size fill the tiles.
//!
//! Sums appear with channels along the lanes and are turned over on their way out. What must never live here: padding,
//! the choice between this and `gemm::spread`.

use crate::blocks::{Blocks, Groups};
use crate::epilogue::Epilogue;
use crate::gemm::tile_panels;
use crate::packed::Packed;
use crate::simd::{Kernel, Level, Simd};
use crate::team::{self, Room, Shared, Team, share_of};
use crate::tile::{Finish, PANEL, Start, Strip, Sums, Walk};

/// Elements of k taken at once: the weights of three panels then take 36 KiB, which stay in the first-level cache.
const BLOCK_K: usize = 192;

/// Columns summed before they are turned over: three panels of them take 24 KiB.
const COLUMNS_AT_ONCE: usize = 128;

/// An image seen through a window: output place `(y, x)` and element `i` of the window meet at
/// `at + y * run_step + x * step + offset(i)`.
pub(crate) struct Seen<'a> {
    pub at: *const f32,
    /// Output rows and columns.
    pub height: usize,
    pub width: usize,
    pub run_step: usize,
    pub step: usize,
    pub offsets: Offsets<'a>,
}

// SAFETY: the image is only read, and whoever made it has borrowed it.
unsafe impl Sync for Seen<'_> {}

/// Where a window's elements stand.
#[derive(Clone, Copy)]
pub(crate) enum Offsets<'a> {
    /// The same distance apart: planes of channels.
    Even(usize),
    /// Anywhere.
    Table(&'a [u32]),
}

/// The vectors that an image is multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub packed: &'a Packed,
    /// Where sums are whole numbers.
    pub whole: Option<OfSums<'a>>,
}

/// What whole sums start from and what their one is worth, by vector, as far as whole panels.
#[derive(Clone, Copy)]
pub(crate) struct OfSums<'a> {
    pub sums: Sums,
    /// Whole numbers, in the bits of floats.
    pub starts: &'a [f32],
    pub scales: &'a [f32],
    /// Where weights were shifted to be bytes.
    pub shifts: Option<Shifts<'a>>,
}

/// By how much a vector's weights are more than their bytes, and the sums of what each place sees.
#[derive(Clone, Copy)]
pub(crate) struct Shifts<'a> {
    pub by_vector: &'a [f32],
    pub places: &'a [f32],
}

impl OfSums<'_> {
    /// The values of one vector's sums at `n` places from `place` on, with a bias.
    #[inline(always)]
    pub unsafe fn of_vector<S: Simd>(
        &self,
        sums: S::V,
        vector: usize,
        place: usize,
        n: usize,
        bias: f32,
    ) -> S::V {
        // SAFETY: the slices have what is asked of them.
        unsafe {
            let mut sums = S::whole(sums);
            if let Some(Shifts { by_vector, places }) = self.shifts {
                let places = S::load_first(places[place..][..n].as_ptr(), n);
                sums = S::fma(S::splat(by_vector[vector]), places, sums);
            }
            S::fma(sums, S::splat(self.scales[vector]), S::splat(bias))
        }
    }

    /// The values of the sums of 16 vectors from `vector` on at one place.
    #[inline(always)]
    unsafe fn of_place<S: Simd>(&self, sums: S::V, vector: usize, place: usize) -> S::V {
        // SAFETY: the slices have what is asked of them.
        unsafe {
            let mut sums = S::whole(sums);
            if let Some(Shifts { by_vector, places }) = self.shifts {
                let by_vector = S::load(by_vector[vector..][..PANEL].as_ptr());
                sums = S::fma(by_vector, S::splat(places[place]), sums);
            }
            S::mul(sums, S::load(self.scales[vector..][..PANEL].as_ptr()))
        }
    }
}

impl<'a> Weights<'a> {
    pub fn floats(packed: &'a Packed) -> Self {
        Self { packed, whole: None }
    }
}

/// How results lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Out {
    /// `[channels, places]`.
    Planes,
    /// `[places, channels]`.
    Rows,
}

/// `c` from the image and the weights, then the epilogue, whose bias is by channel. The caller has checked all sizes.
pub(crate) fn direct(
    level: Level,
    weights: Weights<'_>,
    seen: &Seen<'_>,
    out: Out,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) {
    let w = weights.packed;
    let groups = || Groups::new(w.extent().div_ceil(PANEL), tile_panels(level));
    let pieces = || Pieces::new(seen.height, seen.width);
    let all = groups().count() * pieces().count();
    let products = w.extent() * w.k() * seen.height * seen.width;
    let (c, parts) = (Shared::new(c), team::parts(team, products, all));
    team.share(parts, &|part, room| {
        let share = share_of(part, parts, all, 1);
        let each = groups().flat_map(|group| pieces().map(move |piece| (group, piece)));
        let each = each.skip(share.start).take(share.len());
        direct_part(level, weights, seen, out, each, c, epilogue, room);
    });
}

/// The panels and pieces of [`direct`] that are given.
#[expect(clippy::too_many_arguments, reason = "as `direct`")]
fn direct_part(
    level: Level,
    weights: Weights<'_>,
    seen: &Seen<'_>,
    out: Out,
    part: impl Iterator<Item = ((usize, usize), Piece)>,
    c: Shared,
    epilogue: &Epilogue<'_>,
    Room { panels, pauses }: &mut Room,
) {
    let Weights { packed: w, whole } = weights;
    let sums = panels.room(values_at_once(level)).as_mut_ptr();
    for ((panel, panels), piece) in part {
        pauses.pause();
        let columns = piece.rows * piece.width;
        for block in Blocks::of(w.k(), BLOCK_K) {
            let at = seen.at.wrapping_add(piece.y * seen.run_step + piece.x * seen.step);
            let (at, walk) = match seen.offsets {
                Offsets::Even(step) => (at.wrapping_add(block.from * step), Walk::Step(step)),
                Offsets::Table(table) => (at, Walk::Table(table[block.from..].as_ptr())),
            };
            let strip = Strip {
                a: at,
                row_step: seen.step,
                run: piece.width,
                run_step: seen.run_step,
                walk,
                sums: whole.map_or(Sums::Floats, |whole| whole.sums),
                rows: columns,
                k: block.len,
                b: w.at(panel, block.from),
                b_step: PANEL,
                panel_step: w.k() * PANEL,
                columns: panels * PANEL,
                c: sums,
                c_step: panels * PANEL,
                start: block.start(
                    whole.map(|whole| Start::ColumnBias(whole.starts[panel * PANEL..].as_ptr())),
                ),
                finish: Finish::NONE,
            };
            // SAFETY: the caller has checked the image; the room holds a piece.
            unsafe { level.run(strip) };
        }
        let place = piece.y * seen.width + piece.x;
        let turn = Turn {
            sums,
            panels,
            columns,
            first: panel * PANEL,
            channels: (panels * PANEL).min(w.extent() - panel * PANEL),
            place,
            plane: seen.height * seen.width,
            c: c.at(0),
            whole,
            bias: epilogue.bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
            finish: Finish::of(epilogue, 0),
        };
        // SAFETY: the piece lies inside the output, whose size the caller has checked.
        unsafe {
            match out {
                Out::Planes => level.run(turn),
                Out::Rows => level.run(Rows { turn, extent: w.extent() }),
            }
        }
    }
}

/// The values that a piece's sums need room for.
fn values_at_once(level: Level) -> usize {
    COLUMNS_AT_ONCE.next_multiple_of(PANEL) * tile_panels(level) * PANEL
}

/// A part of the output that is contiguous in each plane: some whole rows, or some of one row.
struct Piece {
    y: usize,
    rows: usize,
    x: usize,
    width: usize,
}

struct Pieces {
    height: usize,
    width: usize,
    y: usize,
    x: usize,
}

impl Pieces {
    fn new(height: usize, width: usize) -> Pieces {
        Pieces { height, width, y: 0, x: 0 }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.y >= self.height || self.width == 0 {
            return None;
        }
        let (y, x) = (self.y, self.x);
        if self.width <= COLUMNS_AT_ONCE {
            // As even as can be, in whole rows.
            let most = COLUMNS_AT_ONCE / self.width;
            let left = self.height - y;
            let rows = left.div_ceil(left.div_ceil(most));
            self.y += rows;
            return Some(Piece { y, rows, x, width: self.width });
        }
        let left = self.width - x;
        let width = left.div_ceil(left.div_ceil(COLUMNS_AT_ONCE));
        self.x += width;
        if self.x == self.width {
            (self.x, self.y) = (0, y + 1);
        }
        Some(Piece { y, rows: 1, x, width })
    }
}

/// Writes `sums[column][channel]` as planes, with bias and epilogue.
pub(crate) struct Turn<'a> {
    pub sums: *const f32,
    pub panels: usize,
    pub columns: usize,
    /// The first channel and how many.
    pub first: usize,
    pub channels: usize,
    /// The first column's place in a plane, and a plane's size.
    pub place: usize,
    pub plane: usize,
    pub c: *mut f32,
    /// Where sums are whole numbers.
    pub whole: Option<OfSums<'a>>,
    pub bias: *const f32,
    pub finish: Finish,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut block = [0.0f32; PANEL * PANEL];
        for panel in 0..self.panels {
            let mut column = 0;
            while column < self.columns {
                let n = (self.columns - column).min(PANEL);
                // SAFETY: the room holds whole blocks; the output's size was checked by the caller.
                unsafe {
                    let from = self.sums.add((column * self.panels + panel) * PANEL);
                    S::Wide::transpose(from, self.panels * PANEL, block.as_mut_ptr(), PANEL);
                    self.write::<S::Wide>(&block, panel * PANEL, column, n);
                }
                column += PANEL;
            }
        }
    }
}

impl Turn<'_> {
    #[inline(always)]
    unsafe fn write<S: Simd>(
        &self,
        block: &[f32; PANEL * PANEL],
        channel: usize,
        column: usize,
        n: usize,
    ) {
        for lane in 0..PANEL.min(self.channels.saturating_sub(channel)) {
            let channel = self.first + channel + lane;
            let at = channel * self.plane + self.place + column;
            // SAFETY: as for `run`.
            unsafe {
                let bias = if self.bias.is_null() { 0.0 } else { *self.bias.add(channel) };
                let v = S::load(block.as_ptr().add(lane * PANEL));
                let v = match &self.whole {
                    None => S::add(v, S::splat(bias)),
                    Some(whole) => whole.of_vector::<S>(v, channel, self.place + column, n, bias),
                };
                S::store_first(self.c.add(at), self.finish.apply::<S>(v, at, n), n);
            }
        }
    }
}

/// Writes `sums[column][channel]` as they lie, a row for each column, with bias and epilogue.
struct Rows<'a> {
    turn: Turn<'a>,
    /// Channels of a row.
    extent: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Turn { sums, panels, columns, first, channels, place, c, whole, bias, finish, .. } =
            self.turn;
        for (column, panel) in (0..columns).flat_map(|column| (0..panels).map(move |p| (column, p)))
        {
            let from = panel * PANEL;
            let n = PANEL.min(channels.saturating_sub(from));
            let at = (place + column) * self.extent + first + from;
            // SAFETY: as for `Turn`.
            unsafe {
                let mut v = S::Wide::load(sums.add(column * panels * PANEL + from));
                if let Some(whole) = &whole {
                    v = whole.of_place::<S::Wide>(v, first + from, place + column);
                }
                if !bias.is_null() {
                    v = S::Wide::add(v, S::Wide::load_first(bias.add(first + from), n));
                }
                S::Wide::store_first(c.add(at), finish.apply::<S::Wide>(v, at, n), n);
            }
        }
    }
}
