//! Convolutions along one axis as products of matrices: with the channels innermost, what a
//! position sees is one row of them, and rows may overlap.

use wisp_kernels::columns::transpose;
use wisp_kernels::window::Window;
use wisp_kernels::{Epilogue, Level, Packed, ShapeError, View, linear};

use crate::tract::compiled::stored_struct;
use crate::tract::team::OfThread;

/// Sums of fewer terms, or for fewer outputs, do not pay for turning the tensors over.
const MIN_TERMS: usize = 256;
const MIN_OUTPUTS: usize = 64;

/// A convolution along the last axis with its weights packed.
#[derive(Debug)]
pub(super) struct Line {
    weights: Packed,
    channels: usize,
    stride: usize,
    before: usize,
    after: usize,
}

stored_struct!(Line { weights, channels, stride, before, after });

impl Line {
    /// `weights` are \[outputs, channels, kernel\], for images of height 1. `None` where it is not
    /// worth it.
    pub(super) fn new(
        window: &Window,
        [channels, outputs]: [usize; 2],
        weights: &[f32],
    ) -> Option<Self> {
        let [up, kernel] = window.kernel;
        let [top, before, bottom, after] = window.pads;
        let along = up == 1 && top + bottom == 0 && window.dilations[1] == 1;
        let terms = channels.checked_mul(kernel)?;
        let pays = terms >= MIN_TERMS && outputs >= MIN_OUTPUTS;
        if !along || !pays || weights.len() != terms.checked_mul(outputs)? {
            return None;
        }
        let turned =
            weights.chunks_exact(terms).flat_map(|weights| turn(weights, channels, kernel));
        let weights = Packed::new(outputs, terms, &turned.collect::<Vec<_>>(), (terms, 1)).ok()?;
        Some(Self { weights, channels, stride: window.strides[1], before, after })
    }

    /// Convolves `x`, \[batch, channels, width\], into `y`, \[batch, outputs, width'\]. There is no
    /// residual in `epilogue`.
    ///
    /// # Errors
    /// The slices do not have the sizes that the others ask for.
    pub(super) fn run(
        &self,
        x: &[f32],
        width: usize,
        y: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Vec<f32>,
    ) -> Result<(), ShapeError> {
        let (channels, outputs) = (self.channels, self.weights.extent());
        let padded = self.before + width + self.after;
        let kernel = self.weights.k() / channels.max(1);
        let rows = padded.saturating_sub(kernel) / self.stride + 1;
        let (image, result) = (channels * width, outputs * rows);
        scratch.clear();
        scratch.resize(padded * channels + result, 0.0);
        let (turned, sums) = scratch.split_at_mut(padded * channels);
        for (x, y) in x.chunks_exact(image.max(1)).zip(y.chunks_exact_mut(result.max(1))) {
            let place = &mut turned[self.before * channels..][..image];
            transpose(x, [channels, width], place).map_err(|_| ShapeError("input of a line"))?;
            let a = View { data: turned, row_step: self.stride * channels, column_step: 1 };
            linear(Level::best(), rows, a, &self.weights, sums, epilogue, &OfThread)?;
            transpose(sums, [rows, outputs], y).map_err(|_| ShapeError("output of a line"))?;
        }
        Ok(())
    }
}

/// \[channels, kernel\] as \[kernel, channels\].
fn turn(weights: &[f32], channels: usize, kernel: usize) -> Vec<f32> {
    let mut turned = vec![0.0; weights.len()];
    transpose(weights, [channels, kernel], &mut turned).expect("an output's weights are so many");
    turned
}
