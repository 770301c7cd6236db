//! Products whose vectors are an image's rows seen through a window, gathered row by row: the way for wide images with
//! few channels, where `direct` would spend as long turning sums over as making them.
//!
//! What must never live here: padding, the choice between this and `direct`.

use std::ops::Range;

use crate::blocks::Blocks;
use crate::direct::{Offsets, Seen};
use crate::epilogue::Epilogue;
use crate::gemm::Left;
use crate::packed::Packed;
use crate::simd::{Kernel, Level, Simd};
use crate::team::{self, Room, Shared, Team, share_of};
use crate::tile::{PANEL, Start, Strip, Sums, Walk};

/// Values that are gathered at a time: rooms stay with their threads, and a signal may be one row of millions.
const BLOCK_VALUES: usize = 32 * 1024;

/// `c[channels, height * width]` from the image and the weights, then the epilogue. The caller has checked all sizes;
/// the image's steps along a row must be 1 or 2, and its offsets a table.
pub(crate) fn rows(
    level: Level,
    w: &Packed,
    seen: &Seen<'_>,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) {
    let products = w.extent() * w.k() * seen.height * seen.width;
    let (c, parts) = (Shared::new(c), team::parts(team, products, seen.height));
    team.share(parts, &|part, room| {
        let rows = share_of(part, parts, seen.height, 1);
        rows_part(level, w, seen, rows, c, epilogue, room);
    });
}

/// The rows of [`rows`] that are given.
fn rows_part(
    level: Level,
    w: &Packed,
    seen: &Seen<'_>,
    part: Range<usize>,
    c: Shared,
    epilogue: &Epilogue<'_>,
    Room { panels, pauses }: &mut Room,
) {
    let Offsets::Table(table) = seen.offsets else { unreachable!("rows are gathered by a table") };
    let left = Left::weights(w);
    let plane = seen.height * seen.width;
    for block in Blocks::new(w.k()) {
        let at_once = (BLOCK_VALUES / block.len.max(1)).max(PANEL) / PANEL * PANEL;
        let at_once = at_once.min(seen.width.next_multiple_of(PANEL));
        let room = panels.room(at_once * block.len).as_mut_ptr();
        let stretches = (0..seen.width).step_by(at_once);
        for (y, x) in part.clone().flat_map(|y| stretches.clone().map(move |x| (y, x))) {
            let columns = at_once.min(seen.width - x);
            let place = y * seen.width + x;
            let gather = Gather {
                from: seen.at.wrapping_add(y * seen.run_step + x * seen.step),
                step: seen.step,
                table: &table[block.from..][..block.len],
                columns,
                to: room,
            };
            // SAFETY: the caller has checked the image; the room is for whole panels of a stretch.
            unsafe { level.run(gather) };
            let strip = Strip {
                a: left.at.wrapping_add(block.from * left.k_step),
                row_step: left.row_step,
                run: left.run,
                run_step: left.run_step,
                walk: Walk::Step(left.k_step),
                sums: Sums::Floats,
                rows: left.rows,
                k: block.len,
                b: room,
                b_step: PANEL,
                panel_step: block.len * PANEL,
                columns,
                c: c.at(place),
                c_step: plane,
                start: block.start(epilogue.bias.map(|bias| Start::RowBias(bias.as_ptr()))),
                finish: block.finish(epilogue, place),
            };
            // SAFETY: as above, and for the output.
            unsafe { level.run(strip) };
            pauses.pause();
        }
    }
}

/// Copies one output row's view of the image into panels `[panel][k][16]`, zeros behind the last column.
struct Gather<'a> {
    from: *const f32,
    step: usize,
    table: &'a [u32],
    columns: usize,
    to: *mut f32,
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (whole, rest) = (self.columns / PANEL, self.columns % PANEL);
        for (i, offset) in self.table.iter().enumerate() {
            // SAFETY: the last value read is that of the last column; the caller vouches for it and for the room.
            unsafe {
                let from = self.from.add(*offset as usize);
                let to = self.to.add(i * PANEL);
                let panel_step = self.table.len() * PANEL;
                for panel in 0..whole {
                    let at = from.add(panel * PANEL * self.step);
                    let v = if self.step == 1 { S::Wide::load(at) } else { S::Wide::load_even(at) };
                    S::Wide::store(to.add(panel * panel_step), v);
                }
                for lane in 0..if rest > 0 { PANEL } else { 0 } {
                    let column = whole * PANEL + lane;
                    let value = if lane < rest { *from.add(column * self.step) } else { 0.0 };
                    *to.add(whole * panel_step + lane) = value;
                }
            }
        }
    }
}
