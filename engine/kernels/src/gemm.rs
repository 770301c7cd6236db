//! Matrix products: blocks of k, groups of panels, strips of tiles.
//!
//! Two shapes of the same product: [`linear`] loads constant weights as vectors and broadcasts the rows of its input;
//! [`spread`] loads the columns of a dynamic matrix as vectors and broadcasts the other operand. The third, with the
//! image broadcast and the result turned over, is in `direct.rs`. What must never live here: images, windows.

use std::ops::Range;

use crate::blocks::{Blocks, Groups};
use crate::epilogue::Epilogue;
use crate::packed::{Packed, ShapeError, View, ensure};
use crate::simd::{Kernel, Level, Simd};
use crate::team::{self, Pauses, Room, Shared, Team, share_of};
use crate::tile::{PANEL, Start, Strip, Sums, Walk};

/// The broadcast operand's block is kept under this many values, half of a second-level cache of 1 MiB.
const BLOCK_VALUES: usize = 128 * 1024;

/// Columns are packed and used in blocks of about this many values, 128 KiB: long enough that rows of the output are
/// written in stretches, short enough for the second-level cache.
const BLOCK_COLUMN_VALUES: usize = 32 * 1024;

/// With no more rows than this a dynamic matrix is read in place: packing it costs more than loads from all over it.
const ROWS_WORTH_PACKING: usize = 128;

/// Of a second-level cache of a mebibyte. Rows of a matrix that all lie in a few of its sets are packed.
const SETS: usize = 2048;
/// Rows that a set is good for when they are read in turn, twice its lines: others are on their way meanwhile.
const ROWS_IN_SET: usize = 16;

/// `c[rows, n] = a[rows, k] · w[k, n]`, then the epilogue with one bias for each column; `w` is packed with `n` as its
/// extent. `c` is row-major without gaps, as is the residual.
///
/// # Errors
/// If a slice does not have the size that the others ask for.
pub fn linear(
    level: Level,
    rows: usize,
    a: View<'_>,
    w: &Packed,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) -> Result<(), ShapeError> {
    let (k, n) = (w.k(), w.extent());
    ensure(a.covers(rows, k), "input of the product")?;
    check_output(rows, n, c, epilogue, n)?;
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let (panels, c) = (n.div_ceil(PANEL), Shared::new(c));
    // By columns, so that each weight is read by one thread; by rows where there are few columns.
    let steps = panels.div_ceil(tile_panels(level));
    let by_columns = steps >= 2 * team.width();
    let parts = team::parts(team, rows * n * k, if by_columns { steps } else { rows });
    team.share(parts, &|part, room| {
        let (rows, panels) = match by_columns {
            true => (0..rows, share_of(part, parts, panels, tile_panels(level))),
            false => (share_of(part, parts, rows, 1), 0..panels),
        };
        linear_part(level, rows, a, w, panels, c, epilogue, room.pauses);
    });
    Ok(())
}

/// The rows and panels of [`linear`] that are given, its sizes checked.
#[expect(clippy::too_many_arguments, reason = "as `spread`")]
fn linear_part(
    level: Level,
    rows: Range<usize>,
    a: View<'_>,
    w: &Packed,
    part: Range<usize>,
    c: Shared,
    epilogue: &Epilogue<'_>,
    pauses: Pauses,
) {
    let (k, n) = (w.k(), w.extent());
    for block in Blocks::new(k) {
        let rows_at_once = (BLOCK_VALUES / block.len.max(1)).max(64);
        let mut row = rows.start;
        while row < rows.end {
            let count = rows_at_once.min(rows.end - row);
            for (panel, panels) in Groups::new(part.len(), tile_panels(level)) {
                let panel = part.start + panel;
                let column = panel * PANEL;
                let strip = Strip {
                    a: a.data.as_ptr().wrapping_add(row * a.row_step + block.from * a.column_step),
                    row_step: a.row_step,
                    run: count,
                    run_step: 0,
                    walk: Walk::Step(a.column_step),
                    sums: Sums::Floats,
                    rows: count,
                    k: block.len,
                    b: w.at(panel, block.from),
                    b_step: PANEL,
                    panel_step: k * PANEL,
                    columns: (panels * PANEL).min(n - column),
                    c: c.at(row * n + column),
                    c_step: n,
                    start: block.start(
                        epilogue.bias.map(|bias| Start::ColumnBias(bias[column..].as_ptr())),
                    ),
                    finish: block.finish(epilogue, row * n + column),
                };
                // SAFETY: the sizes were checked by the caller, and other parts have other rows or panels.
                unsafe { level.run(strip) };
                pauses.pause();
            }
            row += count;
        }
    }
}

/// `c[m, n] = a[m, k] · b[k, n]`, then the epilogue with one bias for each column; neither operand is constant, and
/// both may be transposed or have gaps. `c` is row-major without gaps, as is the residual.
///
/// # Errors
/// If a slice does not have the size that the others ask for.
pub fn product(
    level: Level,
    (m, k, n): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) -> Result<(), ShapeError> {
    ensure(a.covers(m, k), "left operand")?;
    ensure(b.covers(k, n), "right operand")?;
    check_output(m, n, c, epilogue, n)?;
    let left = Left {
        rows: m,
        run: m,
        run_step: 0,
        row_step: a.row_step,
        k_step: a.column_step,
        at: a.data.as_ptr(),
        bias_by_row: false,
    };
    spread(level, &left, k, n, b, c, epilogue, team);
    Ok(())
}

/// The operand that [`spread`] broadcasts.
pub(crate) struct Left {
    pub rows: usize,
    /// Rows come in runs, see [`Strip`].
    pub run: usize,
    pub run_step: usize,
    pub row_step: usize,
    pub k_step: usize,
    pub at: *const f32,
    pub bias_by_row: bool,
}

// SAFETY: its values are only read, and whoever made it has borrowed them.
unsafe impl Sync for Left {}

impl Left {
    /// Constant weights, whose vectors become rows; a bias for each.
    pub fn weights(w: &Packed) -> Left {
        Left {
            rows: w.extent(),
            run: PANEL,
            run_step: w.k() * PANEL,
            row_step: 1,
            k_step: PANEL,
            at: w.at(0, 0),
            bias_by_row: true,
        }
    }
}

/// `c = left · b` with the columns of `b` as vectors. The caller has checked all sizes.
#[expect(
    clippy::too_many_arguments,
    reason = "sizes and operands of a product, as everywhere else"
)]
pub(crate) fn spread(
    level: Level,
    left: &Left,
    k: usize,
    n: usize,
    b: View<'_>,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) {
    if left.rows == 0 || n == 0 {
        return;
    }
    let step = tile_panels(level) * PANEL;
    let (c, parts) = (Shared::new(c), team::parts(team, left.rows * n * k, n.div_ceil(step)));
    team.share(parts, &|part, room| {
        let columns = share_of(part, parts, n, step);
        spread_part(level, left, k, n, columns, b, c, epilogue, room);
    });
}

/// The columns of [`spread`] that are given.
#[expect(clippy::too_many_arguments, reason = "as `spread`")]
fn spread_part(
    level: Level,
    left: &Left,
    k: usize,
    n: usize,
    part: Range<usize>,
    b: View<'_>,
    c: Shared,
    epilogue: &Epilogue<'_>,
    Room { panels, pauses }: &mut Room,
) {
    let few = left.rows <= ROWS_WORTH_PACKING && b.column_step == 1;
    for block in Blocks::new(k) {
        let in_place = few && block.len <= rows_in_cache(b.row_step);
        let at_once = (BLOCK_COLUMN_VALUES / block.len.max(1)).max(tile_panels(level) * PANEL)
            / PANEL
            * PANEL;
        let room =
            panels.room(at_once.min(part.len().next_multiple_of(PANEL)) * block.len).as_mut_ptr();
        let mut column = part.start;
        while column < part.end {
            let mut columns = at_once.min(part.end - column);
            let from =
                b.data.as_ptr().wrapping_add(block.from * b.row_step + column * b.column_step);
            let (vectors, b_step, panel_step) = if in_place && columns >= PANEL {
                columns = columns / PANEL * PANEL;
                (from, b.row_step, PANEL)
            } else {
                let pack = Pack {
                    from,
                    k_step: b.row_step,
                    column_step: b.column_step,
                    k: block.len,
                    columns,
                    to: room,
                };
                // SAFETY: the caller has checked the sizes; the room is for whole panels of a block.
                unsafe { level.run(pack) };
                (room.cast_const(), PANEL, block.len * PANEL)
            };
            let bias = epilogue.bias.map(|bias| match left.bias_by_row {
                true => Start::RowBias(bias.as_ptr()),
                false => Start::ColumnBias(bias[column..].as_ptr()),
            });
            let strip = Strip {
                a: left.at.wrapping_add(block.from * left.k_step),
                row_step: left.row_step,
                run: left.run,
                run_step: left.run_step,
                walk: Walk::Step(left.k_step),
                sums: Sums::Floats,
                rows: left.rows,
                k: block.len,
                b: vectors,
                b_step,
                panel_step,
                columns,
                c: c.at(column),
                c_step: n,
                start: block.start(bias),
                finish: block.finish(epilogue, column),
            };
            // SAFETY: as above.
            unsafe { level.run(strip) };
            column += columns;
            pauses.pause();
        }
    }
}

/// How many vectors can be read in turn, a step from each other, before they drive each other out of the cache.
fn rows_in_cache(step: usize) -> usize {
    let apart = if step.is_multiple_of(PANEL) { step / PANEL } else { 1 };
    SETS.checked_shr(apart.trailing_zeros()).unwrap_or(0).max(1) * ROWS_IN_SET
}

/// Copies columns of a matrix into panels of 16, `[panel][k][16]`, zeros behind the last column.
struct Pack {
    from: *const f32,
    k_step: usize,
    column_step: usize,
    k: usize,
    columns: usize,
    to: *mut f32,
}

impl Kernel for Pack {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as promised to this function.
        unsafe {
            if self.column_step == 1 {
                self.copy::<S::Wide>();
                return;
            }
            let mut column = 0;
            while column < self.columns {
                let n = (self.columns - column).min(PANEL);
                let from = self.from.add(column * self.column_step);
                self.turn::<S::Wide>(from, self.to.add(column * self.k), n);
                column += PANEL;
            }
        }
    }
}

impl Pack {
    /// Row by row, as the operand lies in memory: planes of an image are pages apart.
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self) {
        let whole = self.columns / PANEL;
        let rest = self.columns % PANEL;
        for i in 0..self.k {
            // SAFETY: the caller vouches for the operand and for room for whole panels.
            unsafe {
                let from = self.from.add(i * self.k_step);
                let to = self.to.add(i * PANEL);
                for panel in 0..whole {
                    S::store(to.add(panel * self.k * PANEL), S::load(from.add(panel * PANEL)));
                }
                if rest > 0 {
                    S::store(
                        to.add(whole * self.k * PANEL),
                        S::load_first(from.add(whole * PANEL), rest),
                    );
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, from: *const f32, to: *mut f32, n: usize) {
        let mut i = 0;
        // SAFETY: as for `run`; whole blocks only where rows of the operand are contiguous along k.
        unsafe {
            while self.k_step == 1 && n == PANEL && i + PANEL <= self.k {
                S::transpose(from.add(i), self.column_step, to.add(i * PANEL), PANEL);
                i += PANEL;
            }
            while i < self.k {
                for lane in 0..PANEL {
                    let value = if lane < n {
                        *from.add(i * self.k_step + lane * self.column_step)
                    } else {
                        0.0
                    };
                    *to.add(i * PANEL + lane) = value;
                }
                i += 1;
            }
        }
    }
}

/// Wide vectors in a tile's row.
pub(crate) fn tile_panels(level: Level) -> usize {
    if level == Level::Avx512 { 3 } else { 1 }
}

/// That the output, the bias and the residual have their sizes.
pub(crate) fn check_output(
    rows: usize,
    columns: usize,
    c: &[f32],
    epilogue: &Epilogue<'_>,
    biases: usize,
) -> Result<(), ShapeError> {
    let size = rows.checked_mul(columns);
    ensure(size == Some(c.len()), "output")?;
    ensure(epilogue.bias.is_none_or(|bias| bias.len() == biases), "bias")?;
    ensure(epilogue.residual.is_none_or(|residual| residual.len() == c.len()), "residual")
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
