//! Operators that put values elsewhere: CenterCropPad, ConstantOfShape, OneHot, TensorScatter, BitCast and
//! SpaceToDepth by columns.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::ConstantOfShape;

use super::kernel::{
    Built, Form, Kernel, Unknown, built, checked_axis, checked_len, integers_of, one, sizes_of,
};
use super::{sizes, theirs};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("BitCast", bit_cast);
    operators.insert("CenterCropPad", center_crop_pad);
    operators.insert("ConstantOfShape", constant_of_shape);
    operators.insert("OneHot", one_hot);
    operators.insert("SpaceToDepth", space_to_depth);
    operators.insert("TensorScatter", tensor_scatter);
}

/// tract's own, but that zeros which nothing is said of are singles; tract's are doubles.
fn constant_of_shape(context: &ParsingContext, node: &NodeProto) -> Built {
    let value = match node.get_attr_opt::<&TensorProto>("value")? {
        Some(value) => context.load_tensor(value)?,
        None => tensor0(0f32),
    };
    let came = value.len();
    ensure!(came == 1, "`value` has {came} elements, expected one");
    let value = value.into_shape(&[])?.into_arc_tensor();
    sizes::checked((expand(ConstantOfShape::new(value)), vec![]), node, 0)
}

/// Cuts off or adds, on both sides alike, until axes have the sizes asked for.
#[derive(Debug)]
struct CenterCropPad {
    /// All, where there are none.
    axes: Option<Vec<i64>>,
    sizes: Unknown,
}

fn center_crop_pad(context: &ParsingContext, node: &NodeProto) -> Built {
    let axes = node.get_attr_opt_slice::<i64>("axes")?.map(<[i64]>::to_vec);
    ensure!(axes.as_ref().is_none_or(|axes| axes.len() <= 32), "too many axes");
    built(node, CenterCropPad { axes, sizes: Unknown::new(context) })
}

impl CenterCropPad {
    fn axes(&self, rank: usize) -> TractResult<Vec<usize>> {
        ensure!(rank <= 32, "a shape of rank {rank}");
        let Some(axes) = &self.axes else { return Ok((0..rank).collect()) };
        axes.iter().map(|&axis| checked_axis(axis, rank)).collect()
    }
}

impl Kernel for CenterCropPad {
    fn name(&self) -> &'static str {
        "CenterCropPad"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, wanted] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let wanted = wanted.constant.as_ref().map(|wanted| sizes_of(wanted)).transpose()?;
        let mut shape = input.shape.clone();
        for (index, axis) in self.axes(shape.len())?.into_iter().enumerate() {
            shape[axis] = match &wanted {
                Some(wanted) => wanted.get(index).context("too few sizes")?.to_dim(),
                None => self.sizes.dim(index),
            };
        }
        Ok(tvec![Form::new(input.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn copy<T: Datum>(input: &Tensor, shape: &[usize]) -> TractResult<Tensor> {
            let mut from = input.to_plain_array_view::<T>()?;
            let mut output = tract_ndarray::ArrayD::<T>::default(shape);
            let mut to = output.view_mut();
            for (axis, &wanted) in shape.iter().enumerate() {
                let (came, at) = (input.shape()[axis], tract_ndarray::Axis(axis));
                let (size, start) = (came.min(wanted), came.abs_diff(wanted) / 2);
                let slice = tract_ndarray::Slice::from(start..start + size);
                match came < wanted {
                    true => to.slice_axis_inplace(at, slice),
                    false => from.slice_axis_inplace(at, slice),
                }
            }
            to.assign(&from);
            Ok(output.into_tensor())
        }
        let [input, wanted] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (wanted, axes) = (sizes_of(wanted)?, self.axes(input.rank())?);
        ensure!(wanted.len() == axes.len(), "{} sizes for {} axes", wanted.len(), axes.len());
        let mut shape: TVec<usize> = input.shape().into();
        axes.iter().zip(&wanted).for_each(|(&axis, &size)| shape[axis] = size);
        checked_len(&shape)?;
        Ok(tvec![dispatch_datum!(copy(input.datum_type())(input, &shape))?])
    }
}

/// A new axis with one value where the index points, and another elsewhere. tract's panics on
/// an index out of range, which means nowhere.
#[derive(Debug)]
struct OneHot {
    axis: i64,
    depth: Unknown,
}

fn one_hot(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(-1);
    built(node, OneHot { axis, depth: Unknown::new(context) })
}

fn depth_of(depth: &Tensor) -> TractResult<usize> {
    ensure!(depth.len() == 1, "a depth of {} elements", depth.len());
    Ok(sizes_of(depth)?[0])
}

impl Kernel for OneHot {
    fn name(&self) -> &'static str {
        "OneHot"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [indices, depth, values] = inputs else { bail!("expected three inputs") };
        ensure!(indices.datum.is_number() && depth.datum.is_number(), "indices are no numbers");
        let axis = checked_axis(self.axis, indices.shape.len() + 1)?;
        let mut shape = indices.shape.clone();
        shape.insert(
            axis,
            match &depth.constant {
                Some(depth) => depth_of(depth)?.to_dim(),
                None => self.depth.dim(0),
            },
        );
        Ok(tvec![Form::new(values.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn fill<T: Datum>(
            indices: &[i64],
            values: &Tensor,
            [outer, depth, inner]: [usize; 3],
            shape: &[usize],
        ) -> TractResult<Tensor> {
            let values = values.try_as_plain_ram()?;
            let [off, on] = values.as_slice::<T>()? else { bail!("expected two values") };
            let mut output = vec![off.clone(); outer * depth * inner];
            for (place, &index) in indices.iter().enumerate() {
                if let Ok(index) = checked_axis(index, depth) {
                    output[(place / inner * depth + index) * inner + place % inner] = on.clone();
                }
            }
            Ok(tract_ndarray::ArrayD::from_shape_vec(shape, output)?.into_tensor())
        }
        let [indices, depth, values] = inputs else { bail!("expected three inputs") };
        let axis = checked_axis(self.axis, indices.rank() + 1)?;
        let depth = depth_of(depth)?;
        let mut shape: TVec<usize> = indices.shape().into();
        let (outer, inner) = shape.split_at(axis);
        let sizes = [outer.iter().product(), depth, inner.iter().product()];
        shape.insert(axis, depth);
        checked_len(&shape)?;
        let indices = integers_of(indices)?;
        let datum = values.datum_type();
        Ok(tvec![dispatch_datum!(fill(datum)(&indices, values, sizes, &shape))?])
    }
}

/// Blocks of pixels as channels, a channel's own ones side by side.
#[derive(Debug)]
struct SpaceToDepth {
    block: usize,
}

fn space_to_depth(context: &ParsingContext, node: &NodeProto) -> Built {
    let block = node.get_attr::<i64>("blocksize")?;
    let block = usize::try_from(block).ok().filter(|block| (1..1 << 16).contains(block));
    let block = block.context("blocksize out of range")?;
    match node.get_attr_opt::<&str>("mode")?.unwrap_or("DCR") {
        "DCR" => theirs::built(context, node),
        "CRD" => built(node, SpaceToDepth { block }),
        other => bail!("unknown mode {other:?}"),
    }
}

impl Kernel for SpaceToDepth {
    fn name(&self) -> &'static str {
        "SpaceToDepth"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        let [n, c, h, w] = &*input.shape else { bail!("expected a shape of rank 4") };
        let (area, block) = (self.block * self.block, self.block);
        let shape = [n.clone(), c.clone() * area, h.clone() / block, w.clone() / block];
        Ok(tvec![Form::new(input.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn copy<T: Datum>(input: &Tensor, block: usize) -> TractResult<Tensor> {
            let &[n, c, h, w] = input.shape() else { bail!("expected a shape of rank 4") };
            ensure!(h.is_multiple_of(block) && w.is_multiple_of(block), "no whole blocks");
            let view = input.to_plain_array_view::<T>()?;
            let parts = view.into_shape_with_order((n, c, h / block, block, w / block, block))?;
            let parts = parts.permuted_axes([0, 1, 3, 5, 2, 4]);
            let values = parts.iter().cloned().collect();
            let shape = [n, c * block * block, h / block, w / block];
            Ok(tract_ndarray::ArrayD::from_shape_vec(&shape[..], values)?.into_tensor())
        }
        let input = one(inputs)?;
        Ok(tvec![dispatch_datum!(copy(input.datum_type())(input, self.block))?])
    }
}

/// The same bits as another type of that size.
#[derive(Debug)]
struct BitCast {
    to: DatumType,
}

fn bit_cast(_context: &ParsingContext, node: &NodeProto) -> Built {
    let to = node.get_attr::<DatumType>("to")?;
    // Most bytes are no booleans.
    ensure!(to.is_number(), "a BitCast to {to:?} is not served");
    built(node, BitCast { to })
}

impl Kernel for BitCast {
    fn name(&self) -> &'static str {
        "BitCast"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let (input, to) = (one(inputs)?, self.to);
        let (from, is_plain) = (input.datum, input.datum.is_number() || input.datum.is::<bool>());
        ensure!(is_plain && from.size_of() == to.size_of(), "a BitCast of {from:?} to {to:?}");
        Ok(tvec![Form::new(to, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let plain = input.try_as_plain_ram()?;
        let (bytes, to) = (plain.as_bytes(), self.to);
        ensure!(input.datum_type().size_of() == to.size_of(), "types of different sizes");
        // SAFETY: as many bytes as elements of the new type have, which is one of numbers: any
        // bit pattern is one.
        Ok(tvec![unsafe { Tensor::from_raw_dt(to, input.shape(), bytes)? }])
    }
}

/// Writes an update into a cache, from a place of each row's own.
#[derive(Debug)]
struct TensorScatter {
    axis: i64,
    is_circular: bool,
}

fn tensor_scatter(_context: &ParsingContext, node: &NodeProto) -> Built {
    let is_circular = match node.get_attr_opt::<&str>("mode")?.unwrap_or("linear") {
        "linear" => false,
        "circular" => true,
        other => bail!("unknown mode {other:?}"),
    };
    let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(-2);
    built(node, TensorScatter { axis, is_circular })
}

impl Kernel for TensorScatter {
    fn name(&self) -> &'static str {
        "TensorScatter"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [cache, update, ..] = inputs else { bail!("expected two inputs or three") };
        ensure!(cache.datum == update.datum, "a cache and an update of different types");
        ensure!(checked_axis(self.axis, cache.shape.len())? > 0, "the axis is the batch's");
        Ok(tvec![Form::new(cache.datum, cache.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn write<T: Datum>(
            cache: &Tensor,
            update: &Tensor,
            axis: usize,
            places: impl Fn(usize) -> TractResult<Vec<usize>>,
        ) -> TractResult<Tensor> {
            let mut output = cache.to_plain_array_view::<T>()?.into_owned();
            let update = update.to_plain_array_view::<T>()?;
            let rows = output.outer_iter_mut().zip(update.outer_iter());
            for (row, (mut to, from)) in rows.enumerate() {
                let at = tract_ndarray::Axis(axis - 1);
                for (from, place) in from.axis_iter(at).zip(places(row)?) {
                    to.index_axis_mut(at, place).assign(&from);
                }
            }
            Ok(output.into_tensor())
        }
        let [cache, update, starts @ ..] = inputs else { bail!("expected two inputs or three") };
        let axis = checked_axis(self.axis, cache.rank())?;
        ensure!(axis > 0 && cache.rank() == update.rank(), "shapes of different ranks");
        let fits = |index: usize| index == axis || cache.shape()[index] == update.shape()[index];
        ensure!((0..cache.rank()).all(fits), "the update does not fit the cache");
        let (size, count) = (cache.shape()[axis], update.shape()[axis]);
        let starts = starts.first().map(|starts| sizes_of(starts)).transpose()?;
        let places = |row: usize| {
            let start = match &starts {
                Some(starts) => *starts.get(row).context("too few write_indices")?,
                None => 0,
            };
            let end = start.checked_add(count).context("an index out of range")?;
            ensure!(count <= size && (self.is_circular || end <= size), "an index out of range");
            Ok((start..end).map(|place| place % size.max(1)).collect())
        };
        let datum = cache.datum_type();
        Ok(tvec![dispatch_datum!(write(datum)(cache, update, axis, places))?])
    }
}
