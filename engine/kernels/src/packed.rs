//! Matrices laid out for the tiles, and the memory that kernels borrow.
//!
//! What must never live here: arithmetic.

use bytes::Bytes;

use crate::constant::Constant;
use crate::tile::PANEL;
use crate::whole::SumsRoom;

/// An argument whose sizes do not fit together; the text names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeError(
    /// What does not fit.
    pub &'static str,
);

impl std::fmt::Display for ShapeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ShapeError {}

/// Turns a condition on sizes into an error.
pub(crate) fn ensure(holds: bool, what: &'static str) -> Result<(), ShapeError> {
    if holds { Ok(()) } else { Err(ShapeError(what)) }
}

/// 16 values in one cache line. A load that straddles two lines costs twice, hence the alignment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [f32; PANEL]);

/// A constant matrix of `extent` vectors of length `k`, in panels of 16 vectors: `lines[panel * k + i].0[lane]` is
/// element `i` of vector `panel * 16 + lane`; lanes behind the last vector are zero.
///
/// The vectors are output channels of a convolution or output features of a linear layer. Plain data: sizes and lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    extent: usize,
    k: usize,
    lines: Constant<Line>,
}

/// Lines that are packed at a time.
const BLOCK: usize = 64;

impl Packed {
    /// Packs `data`, where element `i` of vector `v` stands at `v * extent_step + i * k_step`: a convolution's
    /// `[extent, k]` has steps `(k, 1)`, a linear layer's `[k, extent]` has `(1, extent)`.
    ///
    /// # Errors
    /// If `data` is too short for the sizes and steps.
    pub fn new(
        extent: usize,
        k: usize,
        data: &[f32],
        (extent_step, k_step): (usize, usize),
    ) -> Result<Packed, ShapeError> {
        ensure(
            View { data, row_step: extent_step, column_step: k_step }.covers(extent, k),
            "matrix to pack",
        )?;
        let mut lines = Vec::with_capacity(extent.div_ceil(PANEL) * k);
        for first in (0..extent).step_by(PANEL) {
            let start = lines.len();
            lines.resize(start + k, Line([0.0; PANEL]));
            let data = &data[(first * extent_step).min(data.len())..];
            pack_panel(&mut lines[start..], PANEL.min(extent - first), data, (extent_step, k_step));
        }
        Ok(Packed { extent, k, lines: lines.into() })
    }

    /// Takes what [`Packed::as_bytes`] gave before, where it lies.
    ///
    /// # Errors
    /// If it is not `ceil(extent / 16) * k` lines, or not aligned as they are.
    pub fn shared(extent: usize, k: usize, bytes: Bytes) -> Result<Packed, ShapeError> {
        let lines = Constant::<Line>::shared(bytes).ok_or(ShapeError("packed bytes"))?;
        ensure(Some(lines.len()) == extent.div_ceil(PANEL).checked_mul(k), "packed lines")?;
        Ok(Packed { extent, k, lines })
    }

    /// How many vectors.
    pub fn extent(&self) -> usize {
        self.extent
    }

    /// Their length.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The lines, see the type.
    pub fn as_bytes(&self) -> &[u8] {
        self.lines.as_bytes()
    }

    /// Element `k` of the first vector of a panel.
    pub(crate) fn at(&self, panel: usize, k: usize) -> *const f32 {
        self.lines.as_ptr().wrapping_add(panel * self.k + k).cast()
    }
}

/// Packs up to 16 vectors, the first of which begins where `data` does.
fn pack_panel(
    lines: &mut [Line],
    vectors: usize,
    data: &[f32],
    (extent_step, k_step): (usize, usize),
) {
    if extent_step == 1 {
        for (i, line) in lines.iter_mut().enumerate() {
            line.0[..vectors].copy_from_slice(&data[i * k_step..][..vectors]);
        }
        return;
    }
    // Lines that are in the cache for all of their lanes.
    for (block, lines) in lines.chunks_mut(BLOCK).enumerate() {
        for lane in 0..vectors {
            let vector = &data[lane * extent_step + block * BLOCK * k_step..];
            for (line, value) in lines.iter_mut().zip(vector.iter().step_by(k_step.max(1))) {
                line.0[lane] = *value;
            }
        }
    }
}

/// A matrix somewhere in a slice: element `(i, j)` stands at `i * row_step + j * column_step`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The values.
    pub data: &'a [f32],
    /// From one row to the next.
    pub row_step: usize,
    /// From one column to the next.
    pub column_step: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix without gaps.
    pub fn rows(data: &'a [f32], columns: usize) -> View<'a> {
        View { data, row_step: columns, column_step: 1 }
    }

    /// The transposed of a row-major matrix that has `columns` columns (and the view as many rows).
    pub fn transposed(data: &'a [f32], columns: usize) -> View<'a> {
        View { data, row_step: 1, column_step: columns }
    }

    /// Whether a matrix of this many rows and columns lies inside the data.
    pub(crate) fn covers(&self, rows: usize, columns: usize) -> bool {
        if rows == 0 || columns == 0 {
            return true;
        }
        let down = (rows - 1).checked_mul(self.row_step);
        let across = (columns - 1).checked_mul(self.column_step);
        down.zip(across)
            .and_then(|(d, a)| d.checked_add(a))
            .is_some_and(|last| last < self.data.len())
    }
}

/// Memory that kernels use and that the caller keeps between calls, so that no call allocates twice. Threads that share
/// a call's work read it; what each writes is in its [`crate::Room`].
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    pub(crate) image: Buffer,
    pub(crate) offsets: Vec<u32>,
    pub(crate) sums: SumsRoom,
}

/// Lines that grow and never shrink; their contents are whatever the last user left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    /// Room for at least so many values.
    pub(crate) fn room(&mut self, values: usize) -> &mut [f32] {
        let lines = values.div_ceil(PANEL);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; PANEL]));
        }
        // SAFETY: a line is 16 values without padding (64 bytes, aligned to 64).
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * PANEL) }
    }
}
