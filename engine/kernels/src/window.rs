//! The geometry of a sliding window over NCHW planes, and the padded copy of a plane that the window kernels read.
//! No arithmetic on the values lives here, and nothing that knows which operator is computed.

use crate::simd::Simd;

/// A two-dimensional window; a 1-D one has height 1 in every field. All in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height, width.
    pub kernel: [usize; 2],
    /// Down, right.
    pub strides: [usize; 2],
    /// Down, right; 1 is dense.
    pub dilations: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
}

/// Why an operator cannot be made, or cannot run on what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowError {
    /// A kernel side, stride or dilation is zero, or a size overflows.
    Geometry,
    /// The weights or the bias have not the length that the channels and the kernel ask for.
    Parameters,
    /// The input is smaller than the window, or its length is not what the shape says.
    Input,
    /// The output or the residual has not the length that the shape asks for.
    Output,
    /// Pads or dilations are so large that the padded rows would not fit in reasonable memory.
    TooLarge,
}

impl std::fmt::Display for WindowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WindowError::Geometry => "a kernel side, stride or dilation is zero or too large",
            WindowError::Parameters => "weights or bias do not match the channels and the kernel",
            WindowError::Input => {
                "the input does not match its shape or is smaller than the window"
            }
            WindowError::Output => "the output or the residual does not match the output's shape",
            WindowError::TooLarge => "pads or dilations are too large",
        })
    }
}

impl std::error::Error for WindowError {}

impl Window {
    /// Output height and width for an input of `h` × `w`, rounding down; `None` where the window does not fit or a
    /// field makes no sense.
    pub fn output(&self, h: usize, w: usize) -> Option<[usize; 2]> {
        Some([self.steps(0, h)?.0, self.steps(1, w)?.0])
    }

    /// As [`Window::output`], rounding up; a last window that would start in the trailing pad is dropped, as ONNX
    /// does.
    pub fn output_ceil(&self, h: usize, w: usize) -> Option<[usize; 2]> {
        let side = |axis: usize, size: usize| {
            let (steps, rest) = self.steps(axis, size)?;
            let steps = steps + usize::from(rest > 0);
            let last = (steps - 1).checked_mul(self.strides[axis])?;
            Some(steps - usize::from(last >= size.checked_add(self.pads[axis])?))
        };
        Some([side(0, h)?, side(1, w)?])
    }

    /// Elements that the dilated kernel spans along `axis`.
    pub(crate) fn span(&self, axis: usize) -> Option<usize> {
        self.kernel[axis].checked_sub(1)?.checked_mul(self.dilations[axis])?.checked_add(1)
    }

    fn steps(&self, axis: usize, size: usize) -> Option<(usize, usize)> {
        if self.strides[axis] == 0 || self.dilations[axis] == 0 || size == 0 {
            return None;
        }
        let padded = size.checked_add(self.pads[axis])?.checked_add(self.pads[axis + 2])?;
        let free = padded.checked_sub(self.span(axis)?)?;
        Some((free / self.strides[axis] + 1, free % self.strides[axis]))
    }
}

/// Floats of padded rows that are worth having at once: half of a small first-level cache.
const BAND_FLOATS: usize = 6 * 1024;
/// Padded rows may take this much beyond a few times the plane itself.
pub(crate) const SLACK_FLOATS: usize = 1 << 24;

/// How padded rows lie in scratch memory. Columns of a strided window are split by phase (column modulo stride), so
/// that each tap of a row of outputs is one contiguous run: a row is `strides[1]` runs of `phase_pitch` floats.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub window: Window,
    /// Input height and width.
    pub input: [usize; 2],
    /// Output height and width.
    pub output: [usize; 2],
    phase_pitch: usize,
    /// Floats from one padded row to the next.
    pub row_pitch: usize,
    /// Where in a padded row the run of each tap of a kernel row begins.
    pub tap_columns: Vec<usize>,
    /// Output rows in a band; every band but the last has so many.
    pub band: usize,
    /// Padded rows of a full band.
    pub band_rows: usize,
}

impl Layout {
    /// Lays out rows for vectors of `lanes`; bands are multiples of `tile` output rows.
    pub fn new(
        window: Window,
        input: [usize; 2],
        output: [usize; 2],
        lanes: usize,
        tile: usize,
    ) -> Result<Layout, WindowError> {
        let [stride_y, stride_x] = window.strides;
        let last_tap = window.span(1).ok_or(WindowError::Geometry)? - 1;
        let span_y = window.span(0).ok_or(WindowError::Geometry)?;
        let read = output[1].div_ceil(lanes) * lanes + last_tap / stride_x;
        let written = (input[1] + window.pads[1]).div_ceil(stride_x);
        // Rows that start on the same offset of a cache line would make all taps but one cross lines; any pitch
        // is as good, so it is only rounded to keep addresses aligned to half a line.
        let phase_pitch = read.max(written).next_multiple_of(8);
        let row_pitch = phase_pitch.checked_mul(stride_x).ok_or(WindowError::TooLarge)?;
        let rows_for = |band: usize| (band - 1).checked_mul(stride_y)?.checked_add(span_y);
        let fitting = (BAND_FLOATS / row_pitch).saturating_sub(span_y) / stride_y + 1;
        let band = if fitting >= output[0] {
            output[0]
        } else {
            (fitting / tile * tile).clamp(tile, output[0].max(tile))
        };
        let band = band.min(output[0]);
        let band_rows = rows_for(band).ok_or(WindowError::TooLarge)?;
        let floats = band_rows.checked_mul(row_pitch).ok_or(WindowError::TooLarge)?;
        if floats > (input[0] * input[1]).saturating_mul(4).saturating_add(SLACK_FLOATS) {
            return Err(WindowError::TooLarge);
        }
        let tap_columns = (0..window.kernel[1])
            .map(|tap| tap * window.dilations[1])
            .map(|column| column % stride_x * phase_pitch + column / stride_x)
            .collect();
        Ok(Layout { window, input, output, phase_pitch, row_pitch, tap_columns, band, band_rows })
    }

    /// Floats of scratch that one full band takes.
    pub fn floats(&self) -> usize {
        self.band_rows * self.row_pitch
    }

    /// Whether one band holds the whole plane; its pad rows then never change from plane to plane.
    pub fn whole(&self) -> bool {
        self.band >= self.output[0]
    }

    /// Copies the input rows that output rows `first..first + count` need into `rows`, which must have been filled
    /// with `pad` once; rows beyond the plane are filled again unless [`Layout::whole`].
    ///
    /// # Safety
    /// The machine has `S`; `plane` points at `input[0] * input[1]` floats, `rows` at [`Layout::floats`];
    /// `first + count <= output[0]` and `count <= band`.
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(
        &self,
        plane: *const f32,
        first: usize,
        count: usize,
        pad: f32,
        rows: *mut f32,
    ) {
        let [stride_y, stride_x] = self.window.strides;
        let [top, left, ..] = self.window.pads;
        let [height, width] = self.input;
        let span_y = (self.window.kernel[0] - 1) * self.window.dilations[0] + 1;
        let needed = (count - 1) * stride_y + span_y;
        let start = first * stride_y;
        for row in 0..needed {
            // SAFETY: `needed` is at most `band_rows`, and `source` is checked against the plane.
            unsafe {
                let to = rows.add(row * self.row_pitch);
                let source = (start + row).wrapping_sub(top);
                if source >= height {
                    if !self.whole() {
                        fill_row::<S>(to, self.row_pitch, pad);
                    }
                    continue;
                }
                let from = plane.add(source * width);
                match stride_x {
                    1 => copy_row::<S>(from, width, to.add(left)),
                    2 => {
                        let even = to.add(left % 2 * self.phase_pitch + left / 2);
                        let odd = to.add((left + 1) % 2 * self.phase_pitch + left.div_ceil(2));
                        split_row::<S>(from, width, even, odd);
                    }
                    _ => {
                        for x in 0..width {
                            let column = x + left;
                            *to.add(column % stride_x * self.phase_pitch + column / stride_x) =
                                *from.add(x);
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// `to` points at `len` floats, a multiple of 8.
#[inline(always)]
unsafe fn fill_row<S: Simd>(to: *mut f32, len: usize, value: f32) {
    // SAFETY: in range by the caller's promise.
    unsafe {
        let value = S::splat(value);
        let mut x = 0;
        while x + S::LANES <= len {
            S::store(to.add(x), value);
            x += S::LANES;
        }
        if x < len {
            S::store_first(to.add(x), value, len - x);
        }
    }
}

/// # Safety
/// `from` and `to` point at `len` floats.
#[inline(always)]
unsafe fn copy_row<S: Simd>(from: *const f32, len: usize, to: *mut f32) {
    // SAFETY: in range by the caller's promise.
    unsafe {
        let mut x = 0;
        while x + S::LANES <= len {
            S::store(to.add(x), S::load(from.add(x)));
            x += S::LANES;
        }
        if x < len {
            S::store_first(to.add(x), S::load_first(from.add(x), len - x), len - x);
        }
    }
}

/// Splits a row into its even and odd columns.
///
/// # Safety
/// `from` points at `len` floats, `even` at half of them rounded up, `odd` at half rounded down.
#[inline(always)]
unsafe fn split_row<S: Simd>(from: *const f32, len: usize, even: *mut f32, odd: *mut f32) {
    // SAFETY: in range by the caller's promise; the last, partial pair is loaded and stored by counts.
    unsafe {
        let mut x = 0;
        while x + 2 * S::LANES <= len {
            let (e, o) = S::deinterleave(S::load(from.add(x)), S::load(from.add(x + S::LANES)));
            S::store(even.add(x / 2), e);
            S::store(odd.add(x / 2), o);
            x += 2 * S::LANES;
        }
        let rest = len - x;
        if rest > 0 {
            let low = S::load_first(from.add(x), rest.min(S::LANES));
            let high = match rest > S::LANES {
                true => S::load_first(from.add(x + S::LANES), rest - S::LANES),
                false => S::zero(),
            };
            let (e, o) = S::deinterleave(low, high);
            S::store_first(even.add(x / 2), e, rest.div_ceil(2));
            if rest > 1 {
                S::store_first(odd.add(x / 2), o, rest / 2);
            }
        }
    }
}
