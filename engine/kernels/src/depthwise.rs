//! Depthwise convolution of NCHW tensors: each channel has its own kernels and sees no other channel.
//!
//! A plane is copied, band by band, into scratch rows that carry their own pads (`window.rs`), so that the loops that
//! multiply never ask where a border is. What must never live here: convolutions that sum over channels.

use crate::epilogue::{Activation, Epilogue, ResidualOrder};
use crate::simd::{Kernel, Level, Simd};
use crate::window::{Layout, Window, WindowError};

/// The weights of a depthwise convolution, ready to run.
#[derive(Clone, Debug)]
pub struct Depthwise {
    window: Window,
    channels: usize,
    multiplier: usize,
    weights: Vec<f32>,
}

/// Output rows of a tile: as many sums as fit the registers of every level beside a column of weights.
const TILE: usize = 8;

impl Depthwise {
    /// Takes `weights` of shape `[channels * multiplier, 1, kernel height, kernel width]`, row-major, where output
    /// channel `o` reads input channel `o / multiplier`.
    ///
    /// # Errors
    /// [`WindowError::Geometry`] where the window makes no sense; [`WindowError::Parameters`] where `channels` or
    /// `multiplier` is zero or the weights' length is not their shape's.
    pub fn new(
        channels: usize,
        multiplier: usize,
        window: Window,
        weights: Vec<f32>,
    ) -> Result<Depthwise, WindowError> {
        let in_range = |axis: usize| window.strides[axis] > 0 && window.dilations[axis] > 0;
        if !in_range(0) || !in_range(1) || window.span(0).is_none() || window.span(1).is_none() {
            return Err(WindowError::Geometry);
        }
        let sides = [multiplier, window.kernel[0], window.kernel[1]];
        let floats = sides.into_iter().try_fold(channels, usize::checked_mul);
        if floats != Some(weights.len()) || weights.is_empty() {
            return Err(WindowError::Parameters);
        }
        Ok(Depthwise { window, channels, multiplier, weights })
    }

    /// The window given to [`Depthwise::new`].
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Shape of the output for an input of `[batch, channels, h, w]`.
    ///
    /// # Errors
    /// [`WindowError::Input`] where the channels differ or the window does not fit.
    pub fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], WindowError> {
        let [batch, channels, h, w] = input;
        if channels != self.channels {
            return Err(WindowError::Input);
        }
        let [oh, ow] = self.window.output(h, w).ok_or(WindowError::Input)?;
        Ok([batch, channels * self.multiplier, oh, ow])
    }

    /// Convolves `x` of `shape` (`[batch, channels, h, w]`) into `y` of [`Depthwise::output_shape`]; the epilogue's
    /// bias has one value for each output channel. `scratch` is grown as needed and may be shared by all operators
    /// of a thread.
    ///
    /// # Errors
    /// [`WindowError::Input`], [`WindowError::Output`] or [`WindowError::Parameters`] where a slice has not the
    /// length its shape asks for; [`WindowError::TooLarge`] for absurd pads or dilations. `y` is then untouched.
    pub fn run(
        &self,
        x: &[f32],
        shape: [usize; 4],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut Vec<f32>,
    ) -> Result<(), WindowError> {
        self.run_at(Level::best(), x, shape, epilogue, y, scratch)
    }

    /// As [`Depthwise::run`], at a given level.
    ///
    /// # Errors
    /// As [`Depthwise::run`].
    pub fn run_at(
        &self,
        level: Level,
        x: &[f32],
        shape: [usize; 4],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut Vec<f32>,
    ) -> Result<(), WindowError> {
        let output = self.output_shape(shape)?;
        let length = |shape: [usize; 4]| shape.into_iter().try_fold(1usize, usize::checked_mul);
        if length(shape) != Some(x.len()) {
            return Err(WindowError::Input);
        }
        if length(output) != Some(y.len()) || epilogue.residual.is_some_and(|r| r.len() != y.len())
        {
            return Err(WindowError::Output);
        }
        if epilogue.bias.is_some_and(|b| b.len() != output[1]) {
            return Err(WindowError::Parameters);
        }
        // Rows that half a vector covers gain nothing from a whole one, which pays for loads across cache lines.
        let level = match level {
            Level::Avx512 if output[3] <= 8 => Level::Avx2,
            level if level.available() => level,
            _ => Level::Scalar,
        };
        let layout = Layout::new(
            self.window,
            [shape[2], shape[3]],
            [output[2], output[3]],
            level.lanes(),
            TILE,
        )?;
        scratch.clear();
        scratch.resize(2 * layout.floats(), 0.0);
        let rows = [scratch.as_mut_ptr(), scratch[layout.floats()..].as_mut_ptr()];
        let job =
            Planes { op: self, layout: &layout, x, planes: shape[0] * shape[1], epilogue, y, rows };
        let dense = self.window.dilations[0] == 1;
        // SAFETY: every length was checked above; `Level::run` checks the instruction set.
        unsafe {
            match (self.window.kernel[0], self.window.strides[0]) {
                (3, 1) if dense => level.run(Fixed::<3, 1>(job)),
                (3, 2) if dense => level.run(Fixed::<3, 2>(job)),
                (5, 1) if dense => level.run(Fixed::<5, 1>(job)),
                (5, 2) if dense => level.run(Fixed::<5, 2>(job)),
                _ => level.run(Free(job)),
            }
        }
        Ok(())
    }
}

/// All planes of one call, lengths checked.
struct Planes<'a> {
    op: &'a Depthwise,
    layout: &'a Layout,
    x: &'a [f32],
    /// Input planes: batch times channels.
    planes: usize,
    epilogue: &'a Epilogue<'a>,
    y: &'a mut [f32],
    /// Two bands of padded rows, zeroed: one is filled while the other is read, because a load that meets a store
    /// still on its way to the cache waits for it.
    rows: [*mut f32; 2],
}

/// A band of output rows of one channel.
struct Band<'a> {
    layout: &'a Layout,
    /// Padded input rows, from the first tap of the first output row.
    rows: *const f32,
    weights: *const f32,
    bias: f32,
    activation: Activation,
    /// The activation's bounds where it only bounds.
    bounds: Option<(f32, f32)>,
    order: ResidualOrder,
    /// Output row 0 of the band, and the residual's there or null.
    y: *mut f32,
    residual: *const f32,
    /// Output rows.
    count: usize,
}

/// Kernels of known height and vertical stride, vertically dense; anything horizontally.
struct Fixed<'a, const KH: usize, const SY: usize>(Planes<'a>);
/// Any window.
struct Free<'a>(Planes<'a>);

impl<const KH: usize, const SY: usize> Kernel for Fixed<'_, KH, SY> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.each_band::<S, Self>() }
    }
}

impl Kernel for Free<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.each_band::<S, Self>() }
    }
}

/// How a band is computed.
trait Tiles {
    /// # Safety
    /// The machine has `S`; the band's pointers cover what its layout says.
    unsafe fn band<S: Simd>(band: &Band<'_>);
}

impl Planes<'_> {
    /// # Safety
    /// The machine has `S`, and the lengths are what the layout says.
    #[inline(always)]
    unsafe fn each_band<S: Simd, T: Tiles>(self) {
        let Planes { op, layout, x, planes, epilogue, y, rows } = self;
        let input = layout.input[0] * layout.input[1];
        let output = layout.output[0] * layout.output[1];
        let taps = op.window.kernel[0] * op.window.kernel[1];
        let bands = layout.output[0].div_ceil(layout.band);
        let total = planes * bands;
        for step in 0..total + 1 {
            // SAFETY: a step is below `planes * bands`, so planes, bands and channels are in range; the two halves of
            // the scratch alternate.
            unsafe {
                if step < total {
                    let (plane, first) = (step / bands, step % bands * layout.band);
                    let count = layout.band.min(layout.output[0] - first);
                    layout.fill::<S>(
                        x.as_ptr().add(plane * input),
                        first,
                        count,
                        0.0,
                        rows[step % 2],
                    );
                }
                let Some(step) = step.checked_sub(1) else { continue };
                let (plane, first) = (step / bands, step % bands * layout.band);
                for copy in 0..op.multiplier {
                    let to = plane * op.multiplier + copy;
                    let channel = to % (op.channels * op.multiplier);
                    let start = to * output + first * layout.output[1];
                    T::band::<S>(&Band {
                        layout,
                        rows: rows[step % 2],
                        weights: op.weights.as_ptr().add(channel * taps),
                        bias: epilogue.bias.map_or(0.0, |bias| bias[channel]),
                        activation: epilogue.activation,
                        bounds: epilogue.activation.bounds(),
                        order: epilogue.order,
                        y: y.as_mut_ptr().add(start),
                        residual: epilogue
                            .residual
                            .map_or(std::ptr::null(), |r| r.as_ptr().add(start)),
                        count: layout.band.min(layout.output[0] - first),
                    });
                }
            }
        }
    }
}

impl<const KH: usize, const SY: usize> Tiles for Fixed<'_, KH, SY> {
    #[inline(always)]
    unsafe fn band<S: Simd>(band: &Band<'_>) {
        let mut row = 0;
        while row < band.count {
            // SAFETY: a tile is never taller than what is left.
            row += unsafe {
                match band.count - row {
                    left if left >= 8 && left % 7 != 0 => tile::<S, KH, SY, 8>(band, row),
                    7.. => tile::<S, KH, SY, 7>(band, row),
                    4.. => tile::<S, KH, SY, 4>(band, row),
                    2.. => tile::<S, KH, SY, 2>(band, row),
                    _ => tile::<S, KH, SY, 1>(band, row),
                }
            };
        }
    }
}

/// Computes `R` whole output rows from `first` on. A column of weights and `R` sums stay in registers; each input
/// vector is loaded once for all the output rows that it touches.
///
/// # Safety
/// As [`Tiles::band`], and `first + R <= band.count`.
#[inline(always)]
unsafe fn tile<S: Simd, const KH: usize, const SY: usize, const R: usize>(
    band: &Band<'_>,
    first: usize,
) -> usize {
    let width = band.layout.output[1];
    let pitch = band.layout.row_pitch;
    let taps = &band.layout.tap_columns;
    let mut x = 0;
    while x < width {
        // SAFETY: padded rows are readable to the next whole vector behind the last tap.
        unsafe {
            let from = band.rows.add(first * SY * pitch + x);
            let mut sums = [S::splat(band.bias); R];
            for (tap, column) in taps.iter().enumerate() {
                let mut weights = [S::zero(); KH];
                for ky in 0..KH {
                    weights[ky] = S::splat(*band.weights.add(ky * taps.len() + tap));
                }
                let from = from.add(*column);
                // Row by row, each loaded once and spent on every sum that it meets, so that few registers are alive at
                // a time. Spelt out because the compiler unrolls two nested loops of this size only sometimes.
                macro_rules! rows {
                    ($($row:literal)*) => {$(
                        if $row < (R - 1) * SY + KH {
                            let value = S::load(from.add($row * pitch));
                            for r in 0..R {
                                if $row >= r * SY && $row < r * SY + KH {
                                    sums[r] = S::fma(value, weights[$row - r * SY], sums[r]);
                                }
                            }
                        }
                    )*};
                }
                rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
            }
            let at = first * width + x;
            band.finish::<S, R>(&mut sums, at, width, width - x);
        }
        x += S::LANES;
    }
    R
}

impl Tiles for Free<'_> {
    /// Four vectors of the band at a time, wherever they lie, so that narrow planes and single rows keep four sums
    /// in flight too.
    #[inline(always)]
    unsafe fn band<S: Simd>(band: &Band<'_>) {
        let Layout { window, row_pitch, .. } = band.layout;
        let width = band.layout.output[1];
        let columns = width.div_ceil(S::LANES);
        let vectors = columns * band.count;
        let mut vector = 0;
        while vector < vectors {
            // SAFETY: the last vectors are repeated where fewer than four are left, so all lie in the band.
            unsafe {
                let mut places = [(0, 0); 4];
                let mut from = [band.rows; 4];
                for (i, place) in places.iter_mut().enumerate() {
                    let v = (vector + i).min(vectors - 1);
                    *place = (v / columns, v % columns * S::LANES);
                    from[i] = band.rows.add(place.0 * window.strides[0] * row_pitch + place.1);
                }
                let mut sums = [S::splat(band.bias); 4];
                for ky in 0..window.kernel[0] {
                    let down = ky * window.dilations[0] * row_pitch;
                    for (kx, across) in band.layout.tap_columns.iter().enumerate() {
                        let weight = S::splat(*band.weights.add(ky * window.kernel[1] + kx));
                        for i in 0..4 {
                            sums[i] = S::fma(S::load(from[i].add(down + across)), weight, sums[i]);
                        }
                    }
                }
                for i in 0..(vectors - vector).min(4) {
                    let (row, x) = places[i];
                    band.finish::<S, 1>(&mut [sums[i]], row * width + x, width, width - x);
                }
            }
            vector += 4;
        }
    }
}

impl Band<'_> {
    /// Adds the residual, applies the activation and stores the first `left` lanes of each of `R` sums, the first at
    /// `at` and each `step` behind the one before.
    ///
    /// # Safety
    /// All of that lies in the band's output, and the machine has `S`.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize>(
        &self,
        sums: &mut [S::V; R],
        at: usize,
        step: usize,
        left: usize,
    ) {
        // SAFETY: the caller's promise; the residual has the output's length.
        unsafe {
            if !self.residual.is_null() && self.order == ResidualOrder::BeforeActivation {
                self.add_residual::<S, R>(sums, at, step, left);
            }
            match self.bounds {
                Some((min, max)) => {
                    for sum in sums.iter_mut() {
                        *sum = S::min(S::splat(max), S::max(S::splat(min), *sum));
                    }
                }
                None => {
                    for sum in sums.iter_mut() {
                        *sum = self.activation.apply::<S>(*sum);
                    }
                }
            }
            if !self.residual.is_null() && self.order == ResidualOrder::AfterActivation {
                self.add_residual::<S, R>(sums, at, step, left);
            }
            if left >= S::LANES {
                for (r, sum) in sums.iter().enumerate() {
                    S::store(self.y.add(at + r * step), *sum);
                }
            } else {
                for (r, sum) in sums.iter().enumerate() {
                    S::store_first(self.y.add(at + r * step), *sum, left);
                }
            }
        }
    }

    /// # Safety
    /// As [`Band::finish`], and the residual is not null.
    #[inline(always)]
    unsafe fn add_residual<S: Simd, const R: usize>(
        &self,
        sums: &mut [S::V; R],
        at: usize,
        step: usize,
        left: usize,
    ) {
        for (r, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                *sum = S::add(
                    *sum,
                    S::load_first(self.residual.add(at + r * step), left.min(S::LANES)),
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "depthwise_tests.rs"]
mod tests;
