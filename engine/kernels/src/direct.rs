//! Products whose broadcast operand is an image: the weights are the vectors, so planes of any size fill the tiles.
//!
//! Sums appear with channels along the lanes and are turned over on their way out. What must never live here: padding,
//! the choice between this and `gemm::spread`.

use crate::blocks::{Blocks, Groups};
use crate::epilogue::Epilogue;
use crate::gemm::tile_panels;
use crate::packed::{Buffer, Packed};
use crate::simd::{Kernel, Level, Simd};
use crate::team::{self, Shared, Team, share_of};
use crate::tile::{Finish, PANEL, Strip, Walk};

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

/// `c[channels, height * width]` from the image and the weights, then the epilogue. The caller has checked all sizes.
pub(crate) fn direct(
    level: Level,
    w: &Packed,
    seen: &Seen<'_>,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) {
    let groups = || Groups::new(w.extent().div_ceil(PANEL), tile_panels(level));
    let pieces = || Pieces::new(seen.height, seen.width);
    let all = groups().count() * pieces().count();
    let products = w.extent() * w.k() * seen.height * seen.width;
    let (c, parts) = (Shared::new(c), team::parts(team, products, all));
    team.share(parts, &|part, room| {
        let share = share_of(part, parts, all, 1);
        let each = groups().flat_map(|group| pieces().map(move |piece| (group, piece)));
        let each = each.skip(share.start).take(share.len());
        direct_part(level, w, seen, each, c, epilogue, &mut room.panels);
    });
}

/// The panels and pieces of [`direct`] that are given.
fn direct_part(
    level: Level,
    w: &Packed,
    seen: &Seen<'_>,
    part: impl Iterator<Item = ((usize, usize), Piece)>,
    c: Shared,
    epilogue: &Epilogue<'_>,
    room: &mut Buffer,
) {
    let sums = room.room(values_at_once(level)).as_mut_ptr();
    for ((panel, panels), piece) in part {
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
                rows: columns,
                k: block.len,
                b: w.at(panel, block.from),
                b_step: PANEL,
                panel_step: w.k() * PANEL,
                columns: panels * PANEL,
                c: sums,
                c_step: panels * PANEL,
                start: block.start(None),
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
            bias: epilogue.bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
            finish: Finish {
                residual: epilogue.residual.map_or(std::ptr::null(), |r| r.as_ptr()),
                order: epilogue.order,
                activation: epilogue.activation,
            },
        };
        // SAFETY: the piece lies inside the output, whose size the caller has checked.
        unsafe { level.run(turn) };
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
pub(crate) struct Turn {
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
    pub bias: *const f32,
    pub finish: Finish,
}

impl Kernel for Turn {
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

impl Turn {
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
                let v = S::add(S::load(block.as_ptr().add(lane * PANEL)), S::splat(bias));
                S::store_first(self.c.add(at), self.finish.apply::<S>(v, at, n), n);
            }
        }
    }
}
