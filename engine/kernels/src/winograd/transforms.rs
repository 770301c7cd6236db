//! Images and sums into Winograd's tiles and back. Channels are the lanes.
//!
//! What must never live here: products, sizes of blocks.

use super::{SEEN, TILE};
use crate::simd::{Kernel, Simd};
use crate::tile::PANEL;

/// Some tiles of a band, counted row by row.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) across: usize,
}

impl Grid {
    /// Row and column of a tile.
    fn place(&self, tile: usize) -> [usize; 2] {
        [(self.first + tile) / self.across, (self.first + tile) % self.across]
    }
}

/// Copies planes as `[row][column][channel]`, `row` values from one row to the next and `channels` from one column.
pub(super) struct ChannelsLast<'a> {
    pub(super) input: &'a [f32],
    pub(super) image: [usize; 2],
    pub(super) channels: usize,
    pub(super) to: &'a mut [f32],
    pub(super) row: usize,
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
pub(super) struct Enter {
    pub(super) grid: Grid,
    pub(super) from: *const f32,
    pub(super) row: usize,
    pub(super) channels: usize,
    pub(super) to: *mut f32,
    pub(super) step: usize,
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
pub(super) struct Leave {
    pub(super) grid: Grid,
    pub(super) from: *const f32,
    pub(super) step: usize,
    pub(super) outputs: usize,
    pub(super) panels: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) to: *mut f32,
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
