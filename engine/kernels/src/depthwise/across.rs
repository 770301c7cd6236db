//! Depthwise convolution with neighbouring channels in the lanes of a vector, for planes much narrower than one.
//!
//! A group of channels, as many as there are lanes, is turned into pixels of one vector each, laid in rows with their
//! pads; the sums are turned back. Turning costs two or three steps a value, a half-empty vector many more.

use super::Depthwise;
use super::tiles::Planes;
use crate::epilogue::ResidualOrder;
use crate::simd::{Kernel, Simd};
use crate::window::Layout;

/// More scratch vectors than this do not stay in the first-level cache, and turning then costs too much.
const MOST_VECTORS: usize = 700;

/// What one group of channels takes, in vectors of one value for each of them.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Input pixels as they lie in a plane.
    input: usize,
    /// Height and width of the input with its pads, no smaller than the outputs' windows reach.
    padded: [usize; 2],
    taps: usize,
    output: usize,
}

impl Sizes {
    /// The sizes, if the shape is one for this way.
    pub fn of(op: &Depthwise, layout: &Layout, lanes: usize) -> Option<Sizes> {
        let area = |[h, w]: [usize; 2]| h * w;
        let window = &op.window;
        let padded = [0, 1].map(|axis| {
            let reach = (layout.output[axis] - 1) * window.strides[axis]
                + window.dilations[axis] * (window.kernel[axis] - 1);
            (reach + 1).max(window.pads[axis] + layout.input[axis])
        });
        let sizes = Sizes {
            input: area(layout.input),
            padded,
            taps: area(window.kernel),
            output: area(layout.output),
        };
        let narrow = layout.output[1] * 2 <= lanes + 1;
        let enough = op.channels >= lanes && sizes.input >= lanes && sizes.output >= lanes;
        let few = padded[0] <= MOST_VECTORS
            && padded[1] <= MOST_VECTORS
            && sizes.vectors() <= MOST_VECTORS;
        (op.multiplier == 1 && sizes.taps > 1 && narrow && enough && few).then_some(sizes)
    }

    /// Vectors of scratch.
    pub fn vectors(&self) -> usize {
        self.input + self.padded[0] * self.padded[1] + self.taps + self.output
    }
}

/// The planes of one part; the first scratch pointer is to [`Sizes::vectors`] zeroed vectors, the second is not used.
pub(super) struct Across<'a>(pub Planes<'a>, pub Sizes);

impl Kernel for Across<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Across(planes, sizes) = self;
        let channels = planes.op.channels;
        // SAFETY: a group never reaches beyond the last channel (the last group may overlap the one before, and then
        // computes the same again); the parts of the scratch are as long as `sizes` says.
        unsafe {
            let pixels = planes.rows[0];
            let rows = pixels.add(sizes.input * S::LANES);
            let weights = rows.add(sizes.padded[0] * sizes.padded[1] * S::LANES);
            let sums = weights.add(sizes.taps * S::LANES);
            for group in planes.part.clone() {
                let channel = (group * S::LANES).min(channels - S::LANES);
                turn_weights::<S>(&planes.op.weights[channel * sizes.taps..], sizes.taps, weights);
                for image in 0..planes.images {
                    let plane = image * channels + channel;
                    turn::<S>(planes.x.as_ptr().add(plane * sizes.input), sizes.input, pixels);
                    planes.lay_rows::<S>(&sizes, pixels, rows);
                    planes.sum::<S>(&sizes, channel, rows, weights, sums);
                    let y = planes.y.at(plane * sizes.output);
                    turn_back::<S>(sums, sizes.output, y);
                    if let Some(residual) = planes.epilogue.residual {
                        let residual = residual.as_ptr().add(plane * sizes.output);
                        planes.add_residual::<S>(residual, sizes.output * S::LANES, y);
                    }
                }
            }
        }
    }
}

/// Turns `LANES` runs of `len` values, one behind the other, into `len` vectors.
///
/// # Safety
/// `len` is no less than `LANES`, and both pointers cover `len * LANES` values.
#[inline(always)]
unsafe fn turn<S: Simd>(from: *const f32, len: usize, to: *mut f32) {
    for block in 0..len.div_ceil(S::LANES) {
        let start = (block * S::LANES).min(len - S::LANES);
        // SAFETY: the last block is moved up so that it ends with the run.
        unsafe { S::transpose(from.add(start), len, to.add(start * S::LANES), S::LANES) }
    }
}

/// Undoes [`turn`].
///
/// # Safety
/// As [`turn`].
#[inline(always)]
unsafe fn turn_back<S: Simd>(from: *const f32, len: usize, to: *mut f32) {
    for block in 0..len.div_ceil(S::LANES) {
        let start = (block * S::LANES).min(len - S::LANES);
        // SAFETY: as in `turn`.
        unsafe { S::transpose(from.add(start * S::LANES), S::LANES, to.add(start), len) }
    }
}

/// Turns the weights of `LANES` channels, of which there may be fewer than lanes each.
///
/// # Safety
/// `from` is at least `taps * LANES` long, `to` has room for as many.
#[inline(always)]
unsafe fn turn_weights<S: Simd>(from: &[f32], taps: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        if taps >= S::LANES {
            return turn::<S>(from.as_ptr(), taps, to);
        }
        for lane in 0..S::LANES {
            for tap in 0..taps {
                *to.add(tap * S::LANES + lane) = *from.as_ptr().add(lane * taps + tap);
            }
        }
    }
}

impl Planes<'_> {
    /// # Safety
    /// The pointers cover what `sizes` says.
    #[inline(always)]
    unsafe fn lay_rows<S: Simd>(&self, sizes: &Sizes, pixels: *const f32, rows: *mut f32) {
        let [h, w] = self.layout.input;
        let [top, left, ..] = self.op.window.pads;
        for y in 0..h {
            for x in 0..w {
                let to = (y + top) * sizes.padded[1] + x + left;
                // SAFETY: `padded` has room for the input behind its leading pads.
                unsafe {
                    S::store(rows.add(to * S::LANES), S::load(pixels.add((y * w + x) * S::LANES)))
                }
            }
        }
    }

    /// # Safety
    /// The pointers cover what `sizes` says.
    #[inline(always)]
    unsafe fn sum<S: Simd>(
        &self,
        sizes: &Sizes,
        channel: usize,
        rows: *const f32,
        weights: *const f32,
        sums: *mut f32,
    ) {
        let [h, w] = self.layout.output;
        let [stride_y, stride_x] = self.op.window.strides;
        for y in 0..h {
            let mut x = 0;
            while x < w {
                // SAFETY: a run of pixels is never longer than what is left of the row.
                unsafe {
                    let from = rows.add((y * stride_y * sizes.padded[1] + x * stride_x) * S::LANES);
                    let to = sums.add((y * w + x) * S::LANES);
                    x += match w - x {
                        7.. => self.run_of::<S, 7>(sizes, channel, from, weights, to),
                        4.. => self.run_of::<S, 4>(sizes, channel, from, weights, to),
                        2.. => self.run_of::<S, 2>(sizes, channel, from, weights, to),
                        _ => self.run_of::<S, 1>(sizes, channel, from, weights, to),
                    };
                }
            }
        }
    }

    /// Sums for `R` neighbouring pixels of one output row.
    ///
    /// # Safety
    /// `from` is where the first one's window begins in padded rows; the rest as for `sum`.
    #[inline(always)]
    unsafe fn run_of<S: Simd, const R: usize>(
        &self,
        sizes: &Sizes,
        channel: usize,
        from: *const f32,
        weights: *const f32,
        to: *mut f32,
    ) -> usize {
        let window = &self.op.window;
        let step = window.strides[1] * S::LANES;
        // SAFETY: windows lie in the padded rows; the bias has a value for each channel.
        unsafe {
            let bias = match self.epilogue.bias {
                Some(bias) => S::load(bias.as_ptr().add(channel)),
                None => S::zero(),
            };
            let mut sums = [bias; R];
            let mut weights = weights;
            for ky in 0..window.kernel[0] {
                let mut from = from.add(ky * window.dilations[0] * sizes.padded[1] * S::LANES);
                for _ in 0..window.kernel[1] {
                    let weight = S::load(weights);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = S::fma(S::load(from.add(r * step)), weight, *sum);
                    }
                    from = from.add(window.dilations[1] * S::LANES);
                    weights = weights.add(S::LANES);
                }
            }
            let early = self.epilogue.residual.is_none()
                || self.epilogue.order == ResidualOrder::AfterActivation;
            if early {
                match self.epilogue.activation.bounds() {
                    Some((min, max)) => {
                        for sum in sums.iter_mut() {
                            *sum = S::min(S::splat(max), S::max(S::splat(min), *sum));
                        }
                    }
                    None => {
                        for sum in sums.iter_mut() {
                            *sum = self.epilogue.activation.apply::<S>(*sum);
                        }
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                S::store(to.add(r * S::LANES), *sum);
            }
        }
        R
    }

    /// Adds the residual to `len` values (whole vectors) and applies the activation if it comes behind that.
    ///
    /// # Safety
    /// Both pointers cover `len` values.
    #[inline(always)]
    unsafe fn add_residual<S: Simd>(&self, residual: *const f32, len: usize, y: *mut f32) {
        let late = self.epilogue.order == ResidualOrder::BeforeActivation;
        for at in (0..len).step_by(S::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = S::add(S::load(y.add(at)), S::load(residual.add(at)));
                S::store(
                    y.add(at),
                    if late { self.epilogue.activation.apply::<S>(sum) } else { sum },
                );
            }
        }
    }
}
