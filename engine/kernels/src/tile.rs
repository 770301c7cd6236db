//! The register tile that every product comes down to, and strips of such tiles.
//!
//! A tile is `rows` broadcast values times `panels` vectors of 16 lanes, summed over k. Which operand is broadcast and
//! which is loaded as vectors is the caller's choice: weights or image, see `conv.rs` and `gemm.rs`. What must never
//! live here: packing, loops over blocks of k, shapes. What sums begin with and end as is in `tile/ends.rs`.

mod ends;

use crate::simd::{Kernel, Several, Simd};

pub(crate) use ends::{Finish, Start};

/// Lanes of a panel, at every level, so that packed matrices are the same everywhere.
pub(crate) const PANEL: usize = 16;

/// What is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// Products of floats.
    Floats,
    /// Products of four bytes each, as whole numbers in the bits of what they start from and of the output, with
    /// nothing done to them on their way out.
    Bytes {
        /// By the processor's own instruction.
        fast: bool,
        /// Whether it is the vectors whose bytes are flipped, see [`Simd::FLIP`], and not what is broadcast.
        turned: bool,
    },
}

/// How the broadcast operand is walked along k.
#[derive(Clone, Copy)]
pub(crate) enum Walk {
    /// The same step each time.
    Step(usize),
    /// An offset for each k: an image seen through a kernel's window.
    Table(*const u32),
}

/// Tiles over rows and columns of a result, for one block of k: each tile's rows sweep over all columns, so that the
/// output is written along its rows.
///
/// Rows come in runs of `run` (the last may be shorter): row `r` of the broadcast operand starts at
/// `a + (r / run) * run_step + (r % run) * row_step`.
#[derive(Clone, Copy)]
pub(crate) struct Strip {
    pub a: *const f32,
    pub row_step: usize,
    pub run: usize,
    pub run_step: usize,
    pub walk: Walk,
    pub sums: Sums,
    pub rows: usize,
    pub k: usize,
    /// Vectors: 16 values at `b + k * b_step + panel * panel_step`.
    pub b: *const f32,
    pub b_step: usize,
    pub panel_step: usize,
    pub columns: usize,
    pub c: *mut f32,
    pub c_step: usize,
    pub start: Start,
    pub finish: Finish,
}

impl Kernel for Strip {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let panels = self.columns.div_ceil(PANEL);
        let groups = panels.div_ceil(S::Wide::PANELS);
        let mut first = 0;
        while first < self.rows {
            let run = self.run.min(self.rows - first);
            let tiles = run.div_ceil(S::Wide::ROWS);
            let mut row = 0;
            for tile in 0..tiles {
                // As even as can be: nine rows are 5 and 4, not 8 and 1.
                let end = (tile + 1) * run / tiles;
                // SAFETY: rows and columns lie inside the strip, whose pointers the caller vouches for.
                unsafe {
                    let a = self.a.add((first / self.run) * self.run_step + row * self.row_step);
                    let mut panel = 0;
                    for group in 0..groups {
                        let next = (group + 1) * panels / groups;
                        let place = Place { a, row: first + row, panel };
                        S::Wide::tile(&self, end - row, next - panel, place);
                        panel = next;
                    }
                }
                row = end;
            }
            first += run;
        }
    }
}

/// Where a tile stands.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The first row's broadcast values.
    a: *const f32,
    row: usize,
    panel: usize,
}

/// The tiles that a level is compiled with. Others would only cost the compiler's time.
pub(crate) trait Tiles: Simd {
    /// Rows of the largest tile.
    const ROWS: usize;
    /// Its panels.
    const PANELS: usize;

    /// Runs the tile of so many rows and panels at a place.
    unsafe fn tile(strip: &Strip, rows: usize, panels: usize, place: Place);
}

macro_rules! tiles {
    ($level:ty, $most_rows:literal x $most_panels:literal, $($rows:literal x $panels:literal),*) => {
        impl Tiles for $level {
            const ROWS: usize = $most_rows;
            const PANELS: usize = $most_panels;

            #[inline(always)]
            unsafe fn tile(strip: &Strip, rows: usize, panels: usize, place: Place) {
                // SAFETY: as promised to this function.
                unsafe {
                    match (rows, panels) {
                        $(($rows, $panels) => Self::call(Tile::<$rows, $panels> { strip, place }),)*
                        _ => {}
                    }
                }
            }
        }
    };
}

// 24 sums, 3 vectors and 1 broadcast value in 32 registers.
#[cfg(target_arch = "x86_64")]
tiles!(
    crate::simd::Avx512, 8 x 3, 1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 1 x 2, 2 x 2, 3 x 2, 4 x 2, 5 x 2,
    6 x 2, 7 x 2, 8 x 2, 1 x 3, 2 x 3, 3 x 3, 4 x 3, 5 x 3, 6 x 3, 7 x 3, 8 x 3
);
// 12 sums, 2 vectors and 1 broadcast value in 16 registers.
#[cfg(target_arch = "x86_64")]
tiles!(Several<crate::simd::Avx2, 2>, 6 x 1, 1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1);
// 24 sums, 4 vectors and 1 broadcast value in 32 registers.
#[cfg(target_arch = "aarch64")]
tiles!(Several<crate::simd::Neon, 4>, 6 x 1, 1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1);
// 8 sums of four lanes in 16 registers, as every x86-64 has them.
tiles!(Several<crate::simd::Scalar, 2>, 2 x 1, 1 x 1, 2 x 1);

/// A tile of `R` rows and `P` panels.
struct Tile<'a, const R: usize, const P: usize> {
    strip: &'a Strip,
    place: Place,
}

impl<const R: usize, const P: usize> Kernel for Tile<'_, R, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as promised to this function.
        unsafe {
            match self.strip.sums {
                Sums::Floats => self.strip.tile::<S::Wide, Floats, R, P>(self.place),
                Sums::Bytes { fast: true, turned: false } => {
                    self.strip.tile::<S::Wide, Bytes<true, false>, R, P>(self.place)
                }
                Sums::Bytes { fast: true, turned: true } => {
                    self.strip.tile::<S::Wide, Bytes<true, true>, R, P>(self.place)
                }
                Sums::Bytes { fast: false, turned: false } => {
                    self.strip.tile::<S::Wide, Bytes<false, false>, R, P>(self.place)
                }
                Sums::Bytes { fast: false, turned: true } => {
                    self.strip.tile::<S::Wide, Bytes<false, true>, R, P>(self.place)
                }
            }
        }
    }
}

/// How products are summed.
trait Summed {
    /// Whether sums are written as they are.
    const AS_THEY_ARE: bool;

    unsafe fn sum<S: Simd>(x: S::V, v: S::V, acc: S::V) -> S::V;
}

struct Floats;
struct Bytes<const FAST: bool, const TURNED: bool>;

impl Summed for Floats {
    const AS_THEY_ARE: bool = false;

    #[inline(always)]
    unsafe fn sum<S: Simd>(x: S::V, v: S::V, acc: S::V) -> S::V {
        // SAFETY: as promised to this function.
        unsafe { S::fma(x, v, acc) }
    }
}

impl<const FAST: bool, const TURNED: bool> Summed for Bytes<FAST, TURNED> {
    const AS_THEY_ARE: bool = true;

    #[inline(always)]
    unsafe fn sum<S: Simd>(x: S::V, v: S::V, acc: S::V) -> S::V {
        // SAFETY: as promised to this function.
        unsafe { if TURNED { S::dots::<FAST>(v, x, acc) } else { S::dots::<FAST>(x, v, acc) } }
    }
}

impl Strip {
    /// The tile of `R` rows and `P` panels.
    #[inline(always)]
    unsafe fn tile<S: Simd, A: Summed, const R: usize, const P: usize>(&self, place: Place) {
        // SAFETY: every place touched lies inside the strip, whose pointers the caller vouches for.
        unsafe {
            let column = place.panel * PANEL;
            let columns = (self.columns - column).min(P * PANEL);
            let at = place.row * self.c_step + column;
            let mut acc = self.begin::<S, R, P>(place.row, column, columns);
            let (mut a, mut b) = (place.a, self.b.add(place.panel * self.panel_step));
            let (step, mut table) = match self.walk {
                Walk::Step(step) => (step, std::ptr::null()),
                Walk::Table(table) => (0, table),
            };
            for _ in 0..self.k {
                let mut x = a;
                if table.is_null() {
                    a = a.wrapping_add(step);
                } else {
                    x = a.add(*table as usize);
                    table = table.wrapping_add(1);
                }
                let mut vectors = [S::zero(); P];
                for p in 0..P {
                    vectors[p] = S::load(b.add(p * self.panel_step));
                }
                for r in 0..R {
                    let x = S::splat(*x.add(r * self.row_step));
                    for p in 0..P {
                        acc[r][p] = A::sum::<S>(x, vectors[p], acc[r][p]);
                    }
                }
                b = b.wrapping_add(self.b_step);
            }
            if !A::AS_THEY_ARE {
                return self.end::<S, R, P>(acc, at, columns);
            }
            for r in 0..R {
                for p in 0..P {
                    let n = (columns - p * PANEL).min(PANEL);
                    S::store_first(self.c.add(at + r * self.c_step + p * PANEL), acc[r][p], n);
                }
            }
        }
    }
}
