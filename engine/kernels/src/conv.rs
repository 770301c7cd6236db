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

    /// Has `convolve` make each group of channels of each image, which it gets with the group's number.
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for, and `convolve`'s.
    pub(crate) fn each_group(
        &self,
        images: Images<'_>,
        output: &mut [f32],
        mut convolve: impl FnMut(usize, Group<'_>) -> Result<(), ShapeError>,
    ) -> Result<(), ShapeError> {
        let size = self.check_run(&images, output)?;
        if output.is_empty() {
            return Ok(());
        }
        let Images { image, input, epilogue, .. } = images;
        let (inputs, outputs) = (self.inputs / self.groups, self.outputs / self.groups);
        let each = inputs * image[0] * image[1];
        for (part, output) in output.chunks_exact_mut(outputs * size[0] * size[1]).enumerate() {
            let (number, at) = (part % self.groups, part * output.len());
            let input = &input[part * each..][..each];
            let epilogue = Epilogue {
                bias: epilogue.bias.map(|bias| &bias[number * outputs..][..outputs]),
                residual: epilogue.residual.map(|residual| &residual[at..][..output.len()]),
                ..epilogue
            };
            convolve(number, Group { image, size, input, output, epilogue })?;
        }
        Ok(())
    }

    /// Height and width of the output, where all slices have the sizes for it.
    fn check_run(&self, images: &Images<'_>, output: &[f32]) -> Result<[usize; 2], ShapeError> {
        let Images { batch, image, input, epilogue } = *images;
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

    /// What an output of this size sees from `at` on, through offsets by channel, row and column of the window; all are
    /// below 2^32.
    pub(crate) fn seen<'a>(
        &self,
        [height, width]: [usize; 2],
        at: *const f32,
        channels: usize,
        (channel_step, row_step): (usize, usize),
        offsets: &'a mut Vec<u32>,
    ) -> Seen<'a> {
        offsets.clear();
        for channel in 0..channels {
            for y in 0..self.kernel[0] {
                let row = channel * channel_step + y * self.dilations[0] * row_step;
                offsets.extend((0..self.kernel[1]).map(|x| (row + x * self.dilations[1]) as u32));
            }
        }
        Seen {
            at,
            height,
            width,
            run_step: self.strides[0] * row_step,
            step: self.strides[1],
            offsets: Offsets::Table(offsets),
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

/// What a convolution is run on.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// How many.
    pub batch: usize,
    /// Height and width of each.
    pub image: [usize; 2],
    /// `[batch, inputs, height, width]`.
    pub input: &'a [f32],
    /// What becomes of the sums; its bias has one value for each output channel.
    pub epilogue: Epilogue<'a>,
}

/// One group of channels of one image: slices are its own, and have the sizes that the others ask for.
pub(crate) struct Group<'a> {
    /// Height and width of the image.
    pub image: [usize; 2],
    /// And of the output.
    pub size: [usize; 2],
    pub input: &'a [f32],
    pub output: &'a mut [f32],
    pub epilogue: Epilogue<'a>,
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

    /// Convolves images into `output`, `[batch, outputs, height, width]` with the sizes of [`Geometry::output`].
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    pub fn run(
        &self,
        level: Level,
        images: Images<'_>,
        output: &mut [f32],
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        self.geometry.each_group(images, output, |number, group| {
            let w = &self.weights[number];
            if self.geometry.is_pointwise() {
                pointwise(level, w, group, team);
                Ok(())
            } else {
                self.windowed(level, w, group, scratch, team)
            }
        })
    }

    fn windowed(
        &self,
        level: Level,
        w: &Packed,
        group: Group<'_>,
        scratch: &mut Scratch,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let Group { image, size, input, output, epilogue } = group;
        let g = &self.geometry;
        let inputs = g.inputs / g.groups;
        let padded = g.padded(inputs, image)?;
        // An image that must be copied anyway is laid out by rows, each with all channels: what a window sees is then a
        // few stretches of memory, not a piece of a page for each channel.
        let (from, steps) = if g.pads == [0; 4] {
            (input.as_ptr(), (image[0] * image[1], image[1]))
        } else {
            let room = scratch.image.room(inputs * padded[0] * padded[1]);
            pad(input, inputs, image, g.pads, padded, room);
            (room.as_ptr(), (padded[1], inputs * padded[1]))
        };
        let seen = g.seen(size, from, inputs, steps, &mut scratch.offsets);
        let short = SHORT_K.get(g.strides[1] - 1).is_some_and(|&short| w.k() <= short);
        if seen.width >= WIDE_ROW && short {
            rows(level, w, &seen, output, &epilogue, team);
        } else {
            direct(level, Weights::floats(w), &seen, Out::Planes, output, &epilogue, team);
        }
        Ok(())
    }
}

/// A convolution that sees one place: a plain product.
fn pointwise(level: Level, w: &Packed, group: Group<'_>, team: &dyn Team) {
    let Group { image, input, output, epilogue, .. } = group;
    let plane = image[0] * image[1];
    if plane <= SMALL_PLANE {
        let seen = Seen {
            at: input.as_ptr(),
            height: 1,
            width: plane,
            run_step: 0,
            step: 1,
            offsets: Offsets::Even(plane),
        };
        direct(level, Weights::floats(w), &seen, Out::Planes, output, &epilogue, team);
    } else {
        let view = View::rows(input, plane);
        spread(level, &Left::weights(w), w.k(), plane, view, output, &epilogue, team);
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
