//! RoiAlign: regions of pictures, each resampled to one size.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum, integers_of};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("RoiAlign", roi_align);
}

/// Samples of one region and channel: a region far larger than its picture wants more.
const MAX_SAMPLES: f32 = (1 << 20) as f32;

/// Of all regions and channels of a run, which nothing stops: seconds of work.
const MAX_STEPS: usize = 1 << 30;

#[derive(Debug)]
struct RoiAlign {
    height: usize,
    width: usize,
    /// Along each axis, of one output; as many as there are pixels where it is zero.
    samples: usize,
    scale: f32,
    /// Half a pixel, where a pixel's place is its middle.
    offset: f32,
    is_max: bool,
}

fn roi_align(context: &ParsingContext, node: &NodeProto) -> Built {
    let size = |name: &str, usual: i64| {
        let size = node.get_attr_opt::<i64>(name)?.unwrap_or(usual);
        let size = usize::try_from(size).ok().filter(|&size| size < 1 << 16);
        size.with_context(|| format!("{name} out of range"))
    };
    let is_max = match node.get_attr_opt::<&str>("mode")?.unwrap_or("avg") {
        "avg" => false,
        "max" => true,
        other => bail!("unknown mode {other:?}"),
    };
    let is_new = context.onnx_operator_set_version >= 16;
    let usual = if is_new { "half_pixel" } else { "output_half_pixel" };
    let transformation = node.get_attr_opt::<&str>("coordinate_transformation_mode")?;
    let offset = match transformation.unwrap_or(usual) {
        "half_pixel" => 0.5,
        "output_half_pixel" => 0.0,
        other => bail!("unknown coordinate_transformation_mode {other:?}"),
    };
    let (height, width) = (size("output_height", 1)?, size("output_width", 1)?);
    ensure!(height > 0 && width > 0, "an output of nothing");
    let scale = node.get_attr_opt::<f32>("spatial_scale")?.unwrap_or(1.0);
    let samples = size("sampling_ratio", 0)?;
    built(node, RoiAlign { height, width, samples, scale, offset, is_max })
}

/// A sample: its four pixels, and the weight of each.
type Sample = [(usize, f32); 4];

/// The two pixels beside a place, and the weights of both; none far outside.
fn beside(place: f32, size: usize) -> Option<[(usize, f32); 2]> {
    if !(-1.0..=size as f32).contains(&place) || size == 0 {
        return None;
    }
    let place = place.max(0.0);
    let low = place as usize;
    if low >= size - 1 {
        return Some([(size - 1, 1.0), (size - 1, 0.0)]);
    }
    let weight = place - low as f32;
    Some([(low, 1.0 - weight), (low + 1, weight)])
}

impl RoiAlign {
    /// The samples of each output of one region, rows first, in equal parts.
    fn samples(
        &self,
        region: &[f32; 4],
        [height, width]: [usize; 2],
    ) -> TractResult<Vec<Option<Sample>>> {
        let [left, top, right, bottom] = region.map(|at| at * self.scale - self.offset);
        let least = if self.offset == 0.0 { 1.0 } else { f32::MIN };
        let (tall, wide) = ((bottom - top).max(least), (right - left).max(least));
        let (step_y, step_x) = (tall / self.height as f32, wide / self.width as f32);
        let count = |step: f32| match self.samples {
            0 => step.ceil().max(0.0),
            samples => samples as f32,
        };
        let (count_y, count_x) = (count(step_y), count(step_x));
        let outputs = (self.height * self.width) as f32;
        // A region of NaN fails this, too.
        let fits = outputs * count_y.max(1.0) * count_x.max(1.0) <= MAX_SAMPLES;
        ensure!(
            fits && (top + left).is_finite(),
            "a region of {tall} × {wide} pixels is too large"
        );
        let (count_y, count_x) = (count_y as usize, count_x as usize);
        let mut samples = Vec::with_capacity(self.height * self.width * count_y * count_x);
        let place = |start: f32, step: f32, output: usize, index: usize, count: usize| {
            start + output as f32 * step + (index as f32 + 0.5) * step / count as f32
        };
        for output in 0..self.height * self.width {
            for index in 0..count_y * count_x {
                let (y, x) = (output / self.width, output % self.width);
                let y = place(top, step_y, y, index / count_x, count_y);
                let x = place(left, step_x, x, index % count_x, count_x);
                let both = beside(y, height).zip(beside(x, width));
                samples.push(both.map(|(rows, columns)| {
                    [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(row, column)| {
                        let ((y, by_y), (x, by_x)) = (rows[row], columns[column]);
                        (y * width + x, by_y * by_x)
                    })
                }));
            }
        }
        Ok(samples)
    }

    fn pool(&self, samples: &[Option<Sample>], picture: &[f32]) -> f32 {
        let part = |&(place, weight): &(usize, f32)| picture[place] * weight;
        // ONNX Runtime takes the largest of the weighted pixels, not of the samples.
        if self.is_max {
            let largest = samples.iter().map(|sample| match sample {
                Some(sample) => sample.iter().map(part).fold(f32::MIN, f32::max),
                None => 0.0,
            });
            return largest.reduce(f32::max).unwrap_or(0.0);
        }
        let sum: f32 = samples.iter().flatten().flat_map(|sample| sample.iter().map(part)).sum();
        sum / samples.len().max(1) as f32
    }
}

impl Kernel for RoiAlign {
    fn name(&self) -> &'static str {
        "RoiAlign"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [pictures, regions, batches] = inputs else { bail!("expected three inputs") };
        expect_datum(pictures, &[DatumType::F32, DatumType::F16, DatumType::F64])?;
        expect_datum(regions, &[pictures.datum])?;
        expect_datum(batches, &[DatumType::I64])?;
        let [_, channels, _, _] = &*pictures.shape else { bail!("expected a shape of rank 4") };
        let [count, _] = &*regions.shape else { bail!("expected regions of rank 2") };
        let (height, width) = (self.height.to_dim(), self.width.to_dim());
        let shape = [count.clone(), channels.clone(), height, width];
        Ok(tvec![Form::new(pictures.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [pictures, regions, batches] = inputs else { bail!("expected three inputs") };
        let &[batch, channels, height, width] = pictures.shape() else { bail!("expected rank 4") };
        let &[count, 4] = regions.shape() else { bail!("expected regions of four numbers") };
        ensure!(batches.len() == count, "{} indices for {count} regions", batches.len());
        let datum = pictures.datum_type();
        let (pictures, regions) = (pictures.cast_to::<f32>()?, regions.cast_to::<f32>()?);
        let (pictures, regions) = (pictures.try_as_plain_ram()?, regions.try_as_plain_ram()?);
        let (pictures, (regions, _)) =
            (pictures.as_slice::<f32>()?, regions.as_slice::<f32>()?.as_chunks::<4>());
        let shape = [count, channels, self.height, self.width];
        let mut output = Vec::with_capacity(checked_len(&shape)?);
        let (area, mut steps) = (height * width, 0usize);
        for (region, index) in regions.iter().zip(integers_of(batches)?) {
            let index = usize::try_from(index).ok().filter(|&index| index < batch);
            let index = index.context("a batch index out of range")?;
            let samples = self.samples(region, [height, width])?;
            steps = steps.saturating_add(samples.len().saturating_mul(channels));
            ensure!(steps <= MAX_STEPS, "the regions are too large or too many");
            let each = samples.len() / (self.height * self.width);
            for channel in 0..channels {
                let picture = &pictures[(index * channels + channel) * area..][..area];
                let pooled = (0..self.height * self.width)
                    .map(|at| self.pool(&samples[at * each..][..each], picture));
                output.extend(pooled);
            }
        }
        let output = tract_ndarray::ArrayD::from_shape_vec(&shape[..], output)?.into_tensor();
        Ok(tvec![output.cast_to_dt(datum)?.into_owned()])
    }
}
