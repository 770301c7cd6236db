//! Two-dimensional convolution over NCHW images, and one-dimensional as images of height 1.
//!
//! What lives here: sizes, padding and the choice of the way. What must never live here: depthwise convolution
//! (`depthwise.rs`), arithmetic.

use crate::direct::{Offsets, Out, Seen, Weights, direct};
use crate::epilogue::Epilogue;
use crate::gemm::{Left, spread};
use crate::packed::{Packed, Scratch, ShapeError, View, ensure};
use crate::rows::rows;
use crate::simd::Level;
use crate::team::Team;
use crate::window::SLACK_FLOATS;

/// Planes of at most this many values go through `direct`: wider ones fill vectors well, and turning the sums over
/// costs more than packing the image.
pub(crate) const SMALL_PLANE: usize = 256;

/// From this width and up to this k, rows are gathered; every second value of them costs twice as much.
const WIDE_ROW: usize = 48;
const SHORT_K: [usize; 2] = [128, 64];

/// What a convolution's sizes are, apart from the image's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Output channels; a multiple of `groups`.
    pub outputs: usize,
    /// Input channels; a multiple of `groups`.
    pub inputs: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Steps down and across.
    pub strides: [usize; 2],
    /// Distances between the kernel's elements, down and across.
    pub dilations: [usize; 2],
    /// Zeros above, left, below, right.
    pub pads: [usize; 4],
}

impl Geometry {
    /// Height and width of the output for an image's; `None` where the kernel is larger than the padded image or a
    /// size is zero or too large.
    pub fn output(&self, image: [usize; 2]) -> Option<[usize; 2]> {
        let side = |axis: usize| {
            let reach = self.kernel[axis]
                .checked_sub(1)?
                .checked_mul(self.dilations[axis])?
                .checked_add(1)?;
            let padded =
                image[axis].checked_add(self.pads[axis])?.checked_add(self.pads[axis + 2])?;
            padded.checked_sub(reach)?.checked_div(self.strides[axis])?.checked_add(1)
        };
        Some([side(0)?, side(1)?])
    }

    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0; 4]
    }

    /// Height and width of the output, where all slices have the sizes for it.
    pub(crate) fn check_run(
        &self,
        batch: usize,
        image: [usize; 2],
        input: &[f32],
        output: &[f32],
        epilogue: &Epilogue<'_>,
    ) -> Result<[usize; 2], ShapeError> {
        let [height, width] =
            self.output(image).ok_or(ShapeError("image is smaller than the kernel"))?;
        ensure(!image.contains(&0), "image is empty")?;
        ensure(size(&[batch, self.inputs, image[0], image[1]]) == Some(input.len()), "input")?;
        ensure(size(&[batch, self.outputs, height, width]) == Some(output.len()), "output")?;
        ensure(epilogue.bias.is_none_or(|bias| bias.len() == self.outputs), "bias")?;
        ensure(
            epilogue.residual.is_none_or(|residual| residual.len() == output.len()),
            "residual",
        )?;
        Ok([height, width])
    }

    /// How many vectors each group's matrix of weights has, and their length.
    pub(crate) fn matrix(&self) -> Result<(usize, usize), ShapeError> {
        self.check()?;
        let k = size(&[self.inputs / self.groups, self.kernel[0], self.kernel[1]]);
        Ok((self.outputs / self.groups, k.ok_or(ShapeError("kernel"))?))
    }

    /// Where what a window sees stands, by channel, row and column of the window; all is below 2^32.
    pub(crate) fn offsets(
        &self,
        channels: usize,
        (channel_step, row_step): (usize, usize),
        offsets: &mut Vec<u32>,
    ) {
        offsets.clear();
        for channel in 0..channels {
            for y in 0..self.kernel[0] {
                let row = channel * channel_step + y * self.dilations[0] * row_step;
                offsets.extend((0..self.kernel[1]).map(|x| (row + x * self.dilations[1]) as u32));
            }
        }
    }

    /// Height and width with the pads, of an image of so many channels that is laid out anew.
    ///
    /// # Errors
    /// It is too large. Scratch memory stays with the thread: padding may not be most of what it ever holds.
    pub(crate) fn padded(
        &self,
        channels: usize,
        image: [usize; 2],
    ) -> Result<[usize; 2], ShapeError> {
        let pads = self.pads;
        let padded = [image[0] + pads[0] + pads[2], image[1] + pads[1] + pads[3]];
        let most = (channels * image[0] * image[1]).saturating_mul(4).saturating_add(SLACK_FLOATS);
        let fits = size(&[channels, padded[0], padded[1]])
            .is_some_and(|size| size <= most.min(u32::MAX as usize));
        ensure(fits, "image and its padding are too large")?;
        Ok(padded)
    }

    fn check(&self) -> Result<(), ShapeError> {
        ensure(
            self.groups > 0
                && self.outputs.is_multiple_of(self.groups)
                && self.inputs.is_multiple_of(self.groups),
            "groups",
        )?;
        ensure(!self.kernel.contains(&0) && !self.strides.contains(&0), "kernel or strides")
    }
}

/// A convolution with packed weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2d {
    geometry: Geometry,
    /// One matrix for each group: `outputs / groups` vectors of `inputs / groups * kernel`.
    weights: Vec<Packed>,
}

impl Conv2d {
    /// Packs weights `[outputs, inputs / groups, kernel height, kernel width]`.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn new(geometry: Geometry, weights: &[f32]) -> Result<Conv2d, ShapeError> {
        let (each, k) = geometry.matrix()?;
        ensure(geometry.outputs.checked_mul(k) == Some(weights.len()), "weights")?;
        let pack =
            |group: usize| Packed::new(each, k, &weights[group * each * k..][..each * k], (k, 1));
        let weights = (0..geometry.groups).map(pack).collect::<Result<_, _>>()?;
        Ok(Conv2d { geometry, weights })
    }

    /// Takes the weights of [`Conv2d::weights`] as they are.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn packed(geometry: Geometry, weights: Vec<Packed>) -> Result<Conv2d, ShapeError> {
        let matrix = geometry.matrix()?;
        ensure(weights.len() == geometry.groups, "groups of weights")?;
        ensure(weights.iter().all(|w| (w.extent(), w.k()) == matrix), "weights")?;
        Ok(Conv2d { geometry, weights })
    }

    /// The sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The packed weights, one matrix for each group.
    pub fn weights(&self) -> &[Packed] {
        &self.weights
    }

    /// Convolves `batch` images `[inputs, height, width]` into `output`, `[batch, outputs, height', width']` with the
    /// sizes of [`Geometry::output`]. The bias has one value for each output channel.
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    #[expect(clippy::too_many_arguments, reason = "an image, its sizes and what to do with it")]
    pub fn run(
        &self,
        level: Level,
        batch: usize,
        image: [usize; 2],
        input: &[f32],
        output: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let g = &self.geometry;
        let [height, width] = g.check_run(batch, image, input, output, epilogue)?;
        let plane = image[0] * image[1];
        if output.is_empty() {
            return Ok(());
        }
        let (inputs, outputs) = (g.inputs / g.groups, g.outputs / g.groups);
        for (part, out) in output.chunks_exact_mut(outputs * height * width).enumerate() {
            let group = part % g.groups;
            let at = part * out.len();
            let epilogue = Epilogue {
                bias: epilogue.bias.map(|bias| &bias[group * outputs..][..outputs]),
                residual: epilogue.residual.map(|residual| &residual[at..][..out.len()]),
                ..*epilogue
            };
            let from = &input[part * inputs * plane..][..inputs * plane];
            let w = &self.weights[group];
            if g.is_pointwise() {
                pointwise(level, w, plane, from, out, &epilogue, team);
            } else {
                let size = [height, width];
                self.windowed(level, w, image, from, size, out, &epilogue, scratch, team)?;
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one group of `run`")]
    fn windowed(
        &self,
        level: Level,
        w: &Packed,
        image: [usize; 2],
        input: &[f32],
        [height, width]: [usize; 2],
        output: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let g = &self.geometry;
        let inputs = g.inputs / g.groups;
        let padded = g.padded(inputs, image)?;
        // An image that must be copied anyway is laid out by rows, each with all channels: what a window sees is then a
        // few stretches of memory, not a piece of a page for each channel.
        let (from, channel_step, row_step) = if g.pads == [0; 4] {
            (input.as_ptr(), image[0] * image[1], image[1])
        } else {
            let room = scratch.image.room(inputs * padded[0] * padded[1]);
            pad(input, inputs, image, g.pads, padded, room);
            (room.as_ptr(), padded[1], inputs * padded[1])
        };
        let offsets = &mut scratch.offsets;
        g.offsets(inputs, (channel_step, row_step), offsets);
        let seen = Seen {
            at: from,
            height,
            width,
            run_step: g.strides[0] * row_step,
            step: g.strides[1],
            offsets: Offsets::Table(offsets),
        };
        let short = SHORT_K.get(g.strides[1] - 1).is_some_and(|&short| w.k() <= short);
        if width >= WIDE_ROW && short {
            rows(level, w, &seen, output, epilogue, team);
        } else {
            direct(level, Weights::floats(w), &seen, Out::Planes, output, epilogue, team);
        }
        Ok(())
    }
}

/// A convolution that sees one place: a plain product.
fn pointwise(
    level: Level,
    w: &Packed,
    plane: usize,
    input: &[f32],
    output: &mut [f32],
    epilogue: &Epilogue<'_>,
    team: &dyn Team,
) {
    if plane <= SMALL_PLANE {
        let seen = Seen {
            at: input.as_ptr(),
            height: 1,
            width: plane,
            run_step: 0,
            step: 1,
            offsets: Offsets::Even(plane),
        };
        direct(level, Weights::floats(w), &seen, Out::Planes, output, epilogue, team);
    } else {
        spread(
            level,
            &Left::weights(w),
            w.k(),
            plane,
            View::rows(input, plane),
            output,
            epilogue,
            team,
        );
    }
}

/// Copies planes with zeros around them, as `[row][channel][column]`.
fn pad(
    input: &[f32],
    channels: usize,
    image: [usize; 2],
    pads: [usize; 4],
    padded: [usize; 2],
    out: &mut [f32],
) {
    let row = channels * padded[1];
    out[..pads[0] * row].fill(0.0);
    out[(pads[0] + image[0]) * row..padded[0] * row].fill(0.0);
    for (i, line) in input.chunks_exact(image[1]).enumerate() {
        let (channel, y) = (i / image[0], i % image[0]);
        let out = &mut out[(pads[0] + y) * row + channel * padded[1]..][..padded[1]];
        out[..pads[1]].fill(0.0);
        out[pads[1]..][..image[1]].copy_from_slice(line);
        out[pads[1] + image[1]..].fill(0.0);
    }
}

pub(crate) fn size(sides: &[usize]) -> Option<usize> {
    sides.iter().try_fold(1usize, |size, side| size.checked_mul(*side))
}

#[cfg(test)]
#[path = "conv_tests.rs"]
mod tests;
