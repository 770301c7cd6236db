//! What the windows of a deformable convolution see of images: each place in a window is moved by an
//! offset of its own and lies between pixels. Their sums are a convolution of single pixels.

use std::ops::Mul;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

use crate::tract::compiled::stored_struct;

/// Of images \[batch, channels, rows, columns\], offsets, and a mask where there is one. What comes out
/// has a channel for each place in a window, those of an image's channel one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct DeformedWindows {
    pub(in crate::tract) kernel: [usize; 2],
    pub(in crate::tract) strides: [usize; 2],
    pub(in crate::tract) dilations: [usize; 2],
    /// Before both axes, and after them.
    pub(in crate::tract) pads: [usize; 4],
    /// Of channels that are moved alike.
    pub(in crate::tract) groups: usize,
}

stored_struct!(DeformedWindows { kernel, strides, dilations, pads, groups });

impl DeformedWindows {
    fn places(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// # Errors
    /// Images or offsets of another rank.
    pub(in crate::tract) fn shape<D: Clone + Mul<usize, Output = D>>(
        &self,
        images: &[D],
        offsets: &[D],
    ) -> TractResult<TVec<D>> {
        let ([batch, channels, _, _], [_, _, rows, columns]) = (images, offsets) else {
            bail!(
                "images of rank {} and offsets of rank {}, expected 4 and 4",
                images.len(),
                offsets.len()
            );
        };
        let channels = channels.clone() * self.places();
        Ok(tvec![batch.clone(), channels, rows.clone(), columns.clone()])
    }

    /// # Errors
    /// Images, offsets or a mask of sizes that do not fit.
    fn check(
        &self,
        images: &[usize],
        offsets: &[usize],
        mask: Option<&[usize]>,
    ) -> TractResult<()> {
        let &[batch, channels, rows, columns] = images else {
            bail!("images of rank {}, expected 4", images.len());
        };
        let mut sizes = [rows, columns];
        for (axis, size) in sizes.iter_mut().enumerate() {
            let (stride, reach) =
                (self.strides[axis], self.dilations[axis] * (self.kernel[axis] - 1) + 1);
            let padded = *size + self.pads[axis] + self.pads[axis + 2];
            ensure!(
                padded >= reach,
                "a window of {reach} in {padded} pixels along axis {}",
                axis + 2
            );
            *size = (padded - reach) / stride + 1;
        }
        let groups = self.groups;
        ensure!(
            channels.is_multiple_of(groups),
            "{channels} channels in {groups} groups of offsets"
        );
        let places = groups.saturating_mul(self.places());
        let wanted = |each: usize| [batch, places.saturating_mul(each), sizes[0], sizes[1]];
        ensure!(*offsets == wanted(2), "offsets of {offsets:?}, expected {:?}", wanted(2));
        if let Some(mask) = mask {
            ensure!(*mask == wanted(1), "a mask of {mask:?}, expected {:?}", wanted(1));
        }
        Ok(())
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Tensor> {
        let [images, offsets, mask @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let mask = mask.first();
        self.check(images.shape(), offsets.shape(), mask.map(|mask| mask.shape()))?;
        let shape = self.shape(images.shape(), offsets.shape())?;
        let mut output = Tensor::zero::<f32>(&shape)?;
        if output.len() == 0 || images.len() == 0 {
            return Ok(output);
        }
        let (batch, channels) = (images.shape()[0], images.shape()[1]);
        let (size, moved) = ([images.shape()[2], images.shape()[3]], [shape[2], shape[3]]);
        let (area, moved_area) = (size[0] * size[1], moved[0] * moved[1]);
        let pixels = images.try_as_plain_ram()?.as_slice::<f32>()?;
        let offsets = offsets.try_as_plain_ram()?.as_slice::<f32>()?;
        let mask = match mask {
            Some(mask) => Some(mask.try_as_plain_ram()?.as_slice::<f32>()?),
            None => None,
        };
        let mut plain = output.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        let (groups, places) = (self.groups, self.places());
        let mut corners = vec![None; moved[1]];
        for index in 0..batch * groups * places * moved[0] {
            let (index, row) = (index / moved[0], index % moved[0]);
            let (index_of_group, place) = (index / places, index % places);
            let (image, group) = (index_of_group / groups, index_of_group % groups);
            let offsets = &offsets[2 * index * moved_area + row * moved[1]..];
            let mask = mask.map(|mask| &mask[index * moved_area + row * moved[1]..]);
            for (column, corner) in corners.iter_mut().enumerate() {
                let moved_by = [offsets[column], offsets[moved_area + column]];
                let weight = mask.map_or(1.0, |mask| mask[column]);
                let at = self.place([row, column], place, moved_by);
                *corner = Corners::new(at, size, weight);
            }
            let alike = channels / groups;
            for channel in image * channels + group * alike..image * channels + (group + 1) * alike
            {
                let pixels = &pixels[channel * area..][..area];
                let start = (channel * places + place) * moved_area + row * moved[1];
                for (value, corners) in values[start..][..moved[1]].iter_mut().zip(&corners) {
                    *value = corners.as_ref().map_or(0.0, |corners| corners.of(pixels));
                }
            }
        }
        Ok(output)
    }

    /// Where a place in a window lies in an image.
    fn place(&self, window: [usize; 2], place: usize, moved_by: [f32; 2]) -> [f32; 2] {
        let within = [place / self.kernel[1], place % self.kernel[1]];
        std::array::from_fn(|axis| {
            let steps = window[axis] * self.strides[axis] + within[axis] * self.dilations[axis];
            (steps as i64 - self.pads[axis] as i64) as f32 + moved_by[axis]
        })
    }
}

/// The four pixels around a place, and how much of each is seen there.
#[derive(Debug, Clone)]
struct Corners {
    pixels: [usize; 4],
    weights: [f32; 4],
}

impl Corners {
    /// `None` where none of them is in the image. Those that are not count for nothing.
    fn new(at: [f32; 2], size: [usize; 2], weight: f32) -> Option<Self> {
        let is_near = |axis: usize| at[axis] > -1.0 && at[axis] < size[axis] as f32;
        if !is_near(0) || !is_near(1) {
            return None;
        }
        let along = |axis: usize| {
            let (size, low) = (size[axis], at[axis].floor());
            let part = at[axis] - low;
            [(low, 1.0 - part), (low + 1.0, part)].map(|(place, share)| {
                let is_in = place >= 0.0 && place < size as f32;
                ((place as usize).min(size - 1), if is_in { share } else { 0.0 })
            })
        };
        let (rows, columns) = (along(0), along(1));
        let pair = |index: usize| (rows[index / 2], columns[index % 2]);
        Some(Self {
            pixels: std::array::from_fn(|index| pair(index).0.0 * size[1] + pair(index).1.0),
            weights: std::array::from_fn(|index| pair(index).0.1 * pair(index).1.1 * weight),
        })
    }

    fn of(&self, pixels: &[f32]) -> f32 {
        let seen = self.pixels.iter().zip(&self.weights);
        seen.map(|(&pixel, weight)| pixels[pixel] * weight).sum()
    }
}

impl Op for DeformedWindows {
    fn name(&self) -> StaticName {
        "DeformedWindows".into()
    }

    op_as_typed_op!();
}

impl EvalOp for DeformedWindows {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(self.run(&inputs)?.into_tvalue()))
    }
}

impl TypedOp for DeformedWindows {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [images, offsets, mask @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        for fact in inputs {
            ensure!(fact.datum_type == DatumType::F32, "expected FP32, got {:?}", fact.datum_type);
        }
        let sizes = |fact: &TypedFact| fact.shape.as_concrete().map(<[usize]>::to_vec);
        if let (Some(images), Some(offsets)) = (sizes(images), sizes(offsets)) {
            let mask = mask.first().and_then(|mask| sizes(mask));
            self.check(&images, &offsets, mask.as_deref())?;
        }
        let shape = self.shape(images.shape.dims(), offsets.shape.dims())?;
        Ok(tvec!(f32::fact(&shape[..])))
    }

    as_op!();
}
