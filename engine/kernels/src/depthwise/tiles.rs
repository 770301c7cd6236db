//! Depthwise convolution with neighbouring columns in the lanes of a vector.

use std::ops::Range;

use super::Depthwise;
use crate::epilogue::{Activation, Epilogue, ResidualOrder};
use crate::simd::{Kernel, Simd};
use crate::team::Shared;
use crate::window::Layout;

/// Some planes of one call, lengths checked.
pub(super) struct Planes<'a> {
    pub op: &'a Depthwise,
    pub layout: &'a Layout,
    pub x: &'a [f32],
    pub images: usize,
    /// Input planes, batch times channels, that are to be computed; groups of channels where those are the lanes.
    pub part: Range<usize>,
    pub epilogue: &'a Epilogue<'a>,
    pub y: Shared,
    /// Two bands of padded rows, zeroed: one is filled while the other is read, because a load that meets a store
    /// still on its way to the cache waits for it.
    pub rows: [*mut f32; 2],
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
pub(super) struct Fixed<'a, const KH: usize, const SY: usize>(pub Planes<'a>);
/// Any window.
pub(super) struct Free<'a>(pub Planes<'a>);

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
        let Planes { op, layout, x, part, epilogue, y, rows, .. } = self;
        let input = layout.input[0] * layout.input[1];
        let output = layout.output[0] * layout.output[1];
        let taps = op.window.kernel[0] * op.window.kernel[1];
        let bands = layout.output[0].div_ceil(layout.band);
        let total = part.len() * bands;
        for step in 0..total + 1 {
            // SAFETY: a step is below `part.len() * bands`, so planes, bands and channels are in range; the two halves of
            // the scratch alternate.
            unsafe {
                if step < total {
                    let (plane, first) = (part.start + step / bands, step % bands * layout.band);
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
                let (plane, first) = (part.start + step / bands, step % bands * layout.band);
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
                        y: y.at(start),
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
                for (ky, weight) in weights.iter_mut().enumerate() {
                    *weight = S::splat(*band.weights.add(ky * taps.len() + tap));
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
