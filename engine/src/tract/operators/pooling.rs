//! Windows over pictures, and back: LpPool, MaxUnpool, Col2Im and RoiAlign.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::cnn::{PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::math::{abs, pow};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::cnn::HirSumPool;

use super::attributes::integers;
use super::kernel::{
    Built, Form, Kernel, Unknown, built, checked_len, expect_datum, integers_of, sizes_of,
};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Col2Im", col2im);
    operators.insert("LpPool", lp_pool);
    operators.insert("MaxUnpool", max_unpool);
}

/// The root of a window's sum of powers.
#[derive(Debug, Clone)]
struct LpPool {
    sum: HirSumPool,
    power: i64,
}

fn lp_pool(_context: &ParsingContext, node: &NodeProto) -> Built {
    let power = node.get_attr_opt::<i64>("p")?.unwrap_or(2);
    ensure!(power > 0, "p is {power}");
    let axes = integers(node, "kernel_shape")?.len();
    ensure!(axes > 0, "no kernel_shape");
    let list = |name: &str, count, usual| Ok(TVec::from_vec(sizes(node, name, count, usual)?));
    let positive = |name: &str| {
        let list: TVec<usize> = list(name, axes, 1)?;
        ensure!(list.iter().all(|&size| size > 0), "{name} of zero");
        TractResult::Ok(list)
    };
    let ceil = node.get_attr_opt::<i64>("ceil_mode")?.unwrap_or(0) != 0;
    let padding = match node.get_attr_opt::<&str>("auto_pad")?.unwrap_or("NOTSET") {
        "SAME_UPPER" => PaddingSpec::SameUpper,
        "SAME_LOWER" => PaddingSpec::SameLower,
        "VALID" => PaddingSpec::Valid,
        "NOTSET" => {
            let pads: TractResult<TVec<usize>> = list("pads", 2 * axes, 0);
            let pads = pads?;
            PaddingSpec::ExplicitOnnxPool(pads[..axes].into(), pads[axes..].into(), ceil)
        }
        other => bail!("unknown auto_pad {other:?}"),
    };
    let (kernel, strides) = (positive("kernel_shape")?, positive("strides")?);
    let (format, dilations) = (DataFormat::NCHW, positive("dilations")?);
    let pool = PoolSpec::new(format, kernel, padding, Some(dilations), Some(strides), 0, 0);
    let sum = HirSumPool { pool_spec: pool, count_include_pad: true, normalize: false };
    Ok((expand(LpPool { sum, power }), Vec::new()))
}

impl Expansion for LpPool {
    fn name(&self) -> StaticName {
        "LpPool".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.sum.rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?.clone();
        ensure!(fact.datum_type.is_float(), "LpPool of {:?}", fact.datum_type);
        // Powers of halves come to more than halves can be.
        let datum = match fact.datum_type {
            DatumType::F16 => DatumType::F32,
            datum => datum,
        };
        let input = model.wire_node(format!("{prefix}.finer"), cast(datum), inputs)?;
        let mut constant = |name: &str, value: f32| {
            let value = tensor0(value).cast_to_dt(datum)?.into_owned();
            model.add_const(format!("{prefix}.{name}"), value.broadcast_into_rank(fact.rank())?)
        };
        let power = constant("power", self.power as f32)?;
        let root = constant("root", 1.0 / self.power as f32)?;
        let size = model.wire_node(format!("{prefix}.abs"), abs(), &input)?[0];
        let raised = model.wire_node(format!("{prefix}.raised"), pow(), &[size, power])?;
        let sum = self.sum.wire(&format!("{prefix}.sum"), model, &raised)?[0];
        let root = model.wire_node(format!("{prefix}.root_of"), pow(), &[sum, root])?;
        model.wire_node(prefix, cast(fact.datum_type), &root)
    }
}

/// What MaxPool took, back where it took it from.
#[derive(Debug)]
struct MaxUnpool {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    /// Before and after, of all axes together.
    pads: Vec<usize>,
    sizes: Unknown,
}

/// The attribute's sizes for so many axes, or what stands for them.
fn sizes(node: &NodeProto, name: &str, count: usize, usual: usize) -> TractResult<Vec<usize>> {
    let list = integers(node, name)?;
    if list.is_empty() {
        return Ok(vec![usual; count]);
    }
    ensure!(list.len() == count, "{name} has {} elements, expected {count}", list.len());
    let sizes = list.iter().map(|&size| usize::try_from(size).ok().filter(|&size| size < 1 << 31));
    sizes.collect::<Option<_>>().with_context(|| format!("{name} out of range"))
}

fn max_unpool(context: &ParsingContext, node: &NodeProto) -> Built {
    let axes = integers(node, "kernel_shape")?.len();
    ensure!(axes > 0, "no kernel_shape");
    let kernel = sizes(node, "kernel_shape", axes, 1)?;
    let (strides, pads) = (sizes(node, "strides", axes, 1)?, sizes(node, "pads", 2 * axes, 0)?);
    built(node, MaxUnpool { kernel, strides, pads, sizes: Unknown::new(context) })
}

impl MaxUnpool {
    /// The shape that a pool of these attributes most likely had.
    fn shape<D: DimLike>(&self, input: &[D]) -> TractResult<TVec<D>> {
        let axes = self.kernel.len();
        ensure!(input.len() == axes + 2, "a shape of rank {} for {axes} axes", input.len());
        let mut shape: TVec<D> = input.into();
        for (axis, size) in shape[2..].iter_mut().enumerate() {
            let padding = self.pads[axis] + self.pads[axes + axis];
            let covered = (size.clone() - 1) * self.strides[axis] + self.kernel[axis];
            *size = covered - padding;
        }
        Ok(shape)
    }
}

impl Kernel for MaxUnpool {
    fn name(&self) -> &'static str {
        "MaxUnpool"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, indices, wanted @ ..] = inputs else { bail!("expected two inputs or three") };
        expect_datum(indices, &[DatumType::I64])?;
        ensure!(input.datum.is_float(), "expected floats, got {:?}", input.datum);
        let shape: TVec<TDim> = match wanted.first() {
            None => self.shape(&input.shape)?,
            Some(Form { constant: Some(wanted), .. }) => {
                sizes_of(wanted)?.iter().map(|size| size.to_dim()).collect()
            }
            Some(_) => (0..self.kernel.len() + 2).map(|index| self.sizes.dim(index)).collect(),
        };
        Ok(tvec![Form::new(input.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn scatter<T: Datum>(
            input: &Tensor,
            places: impl Iterator<Item = TractResult<usize>>,
            shape: &[usize],
        ) -> TractResult<Tensor> {
            let mut output = vec![T::default(); checked_len(shape)?];
            let input = input.try_as_plain_ram()?;
            for (value, to) in input.as_slice::<T>()?.iter().zip(places) {
                *output.get_mut(to?).context("an index out of range")? = value.clone();
            }
            Ok(tract_ndarray::ArrayD::from_shape_vec(shape, output)?.into_tensor())
        }
        let [input, indices, wanted @ ..] = inputs else { bail!("expected two inputs or three") };
        let dims: TVec<TDim> = input.shape().iter().map(|size| size.to_dim()).collect();
        let pooled = self.shape(&dims)?;
        let pooled = pooled.iter().map(|size| Ok(size.to_usize()?));
        let pooled: TVec<usize> = pooled.collect::<TractResult<_>>()?;
        let shape = wanted.first().map_or(Ok(pooled.clone()), |wanted| sizes_of(wanted))?;
        ensure!(shape.len() == input.rank(), "an output_shape of another rank");
        checked_len(&shape)?;
        let places = integers_of(indices)?.into_iter().map(|index| moved(index, &pooled, &shape));
        Ok(tvec![dispatch_floatlike!(scatter(input.datum_type())(input, places, &shape))?])
    }
}

/// An index counts the elements of the shape that was pooled; the one asked for may be larger.
fn moved(index: i64, pooled: &[usize], shape: &[usize]) -> TractResult<usize> {
    let mut rest = usize::try_from(index).context("an index out of range")?;
    let (mut flat, mut step) = (0, 1);
    for (&from, &to) in pooled.iter().zip(shape).rev() {
        let place = rest % from.max(1);
        ensure!(place < to, "an index out of range");
        flat += place * step;
        rest /= from.max(1);
        step *= to;
    }
    ensure!(rest == 0, "an index out of range");
    Ok(flat)
}

/// Adds windows that lie side by side back to a picture.
#[derive(Debug)]
struct Col2Im {
    /// None of them where all are ones or zeros.
    dilations: Vec<usize>,
    strides: Vec<usize>,
    pads: Vec<usize>,
    sizes: Unknown,
}

fn col2im(context: &ParsingContext, node: &NodeProto) -> Built {
    let list = |name: &str| {
        let count = integers(node, name)?.len();
        if count == 0 { Ok(Vec::new()) } else { sizes(node, name, count, 0) }
    };
    let (dilations, strides, pads) = (list("dilations")?, list("strides")?, list("pads")?);
    built(node, Col2Im { dilations, strides, pads, sizes: Unknown::new(context) })
}

/// One axis: `count` windows of `block` elements in `size`.
#[derive(Debug, Clone, Copy)]
struct Windows {
    size: usize,
    block: usize,
    count: usize,
    dilation: usize,
    stride: usize,
    pad: usize,
}

impl Windows {
    /// Where an element of a window stands; not within the padding.
    fn place(&self, window: usize, element: usize) -> Option<usize> {
        let place = window * self.stride + element * self.dilation;
        place.checked_sub(self.pad).filter(|&place| place < self.size)
    }
}

impl Col2Im {
    fn windows(&self, image: &[usize], block: &[usize]) -> TractResult<Vec<Windows>> {
        let axes = image.len();
        ensure!(block.len() == axes && axes > 0, "{} sizes for {axes} axes", block.len());
        let fits = |list: &[usize], count| list.is_empty() || list.len() == count;
        let fit = fits(&self.dilations, axes) && fits(&self.strides, axes);
        ensure!(fit && fits(&self.pads, 2 * axes), "attributes of other than {axes} axes");
        checked_len(image)?;
        checked_len(block)?;
        let or = |list: &[usize], at: usize, usual| list.get(at).copied().unwrap_or(usual);
        let windows = (0..axes).map(|axis| {
            let (size, block) = (image[axis], block[axis]);
            let dilation = or(&self.dilations, axis, 1);
            let stride = or(&self.strides, axis, 1);
            let (pad, after) = (or(&self.pads, axis, 0), or(&self.pads, axes + axis, 0));
            ensure!(block > 0 && stride > 0, "a block or stride of zero");
            let span = dilation.checked_mul(block - 1).context("dilations are too large")?;
            let free = (size + pad + after).checked_sub(span + 1);
            let count = free.context("a block larger than the image")? / stride + 1;
            Ok(Windows { size, block, count, dilation, stride, pad })
        });
        windows.collect()
    }
}

/// Adds a channel's columns, a row for each element of the block, to its picture.
fn add_windows<T: Copy + std::ops::AddAssign>(axes: &[Windows], columns: &[T], image: &mut [T]) {
    let blocks: TVec<usize> = axes.iter().map(|axis| axis.block).collect();
    let counts: TVec<usize> = axes.iter().map(|axis| axis.count).collect();
    let mut columns = columns.iter();
    for element in tract_ndarray::indices(&*blocks) {
        for window in tract_ndarray::indices(&*counts) {
            let Some(&value) = columns.next() else { return };
            let place = axes.iter().enumerate().try_fold(0, |place, (at, axis)| {
                Some(place * axis.size + axis.place(window[at], element[at])?)
            });
            if let Some(place) = place {
                image[place] += value;
            }
        }
    }
}

impl Kernel for Col2Im {
    fn name(&self) -> &'static str {
        "Col2Im"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, image, block] = inputs else { bail!("expected three inputs") };
        ensure!(input.datum.is_number(), "expected numbers, got {:?}", input.datum);
        let [batch, channels, _] = &*input.shape else { bail!("expected a shape of rank 3") };
        let axes = image.shape.iter().product::<TDim>().to_usize();
        let axes = axes.context("the number of axes is not known")?;
        ensure!(axes <= 32, "{axes} axes");
        let channels = match &block.constant {
            Some(block) => {
                let area = checked_len(&sizes_of(block)?)?;
                ensure!(area > 0, "a block of nothing");
                channels.clone() / area
            }
            None => self.sizes.dim(32),
        };
        let sizes: TVec<TDim> = match &image.constant {
            Some(image) => sizes_of(image)?.iter().map(|size| size.to_dim()).collect(),
            None => (0..axes).map(|index| self.sizes.dim(index)).collect(),
        };
        let shape = [batch.clone(), channels].into_iter().chain(sizes);
        Ok(tvec![Form::new(input.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn add<T: Datum + Copy + std::ops::AddAssign>(
            input: &Tensor,
            axes: &[Windows],
            shape: &[usize],
        ) -> TractResult<Tensor> {
            let mut output = vec![T::default(); checked_len(shape)?];
            let input = input.try_as_plain_ram()?;
            let size: usize = axes.iter().map(|axis| axis.block * axis.count).product();
            let columns = input.as_slice::<T>()?.chunks_exact(size.max(1));
            let area: usize = shape[2..].iter().product();
            for (image, columns) in output.chunks_exact_mut(area.max(1)).zip(columns) {
                add_windows(axes, columns, image);
            }
            Ok(tract_ndarray::ArrayD::from_shape_vec(shape, output)?.into_tensor())
        }
        let [input, image, block] = inputs else { bail!("expected three inputs") };
        let (image, block) = (sizes_of(image)?, sizes_of(block)?);
        let axes = self.windows(&image, &block)?;
        let &[batch, channels, windows] = input.shape() else { bail!("expected rank 3") };
        let area: usize = block.iter().product();
        let counts = axes.iter().try_fold(1usize, |size, axis| size.checked_mul(axis.count));
        ensure!(counts == Some(windows), "{windows} windows do not fill the image");
        ensure!(channels.is_multiple_of(area), "{channels} channels for blocks of {area}");
        let shape: TVec<usize> = [batch, channels / area].into_iter().chain(image).collect();
        Ok(tvec![dispatch_numbers!(add(input.datum_type())(input, &axes, &shape))?])
    }
}
