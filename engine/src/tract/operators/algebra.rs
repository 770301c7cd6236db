//! Arithmetic that tract lacks or does less exactly: Det, CumProd, AffineGrid, Celu; and DFT, means and
//! the like, which it does in finer types here.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::{Pad, PadMode};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, Unknown, built, checked_axis, checked_len, expect_datum, integers_of, one,
    sizes_of,
};
use super::ranks::{self, Need};
use super::theirs::{Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("AffineGrid", affine_grid);
    operators.insert("Celu", celu);
    operators.insert("CumProd", cum_prod);
    operators.insert("DFT", dft);
    operators.insert("Det", |_, node| built(node, Det));
    // tract's Gemm makes singles of halves, which it then takes for another type than it said.
    for name in ["AveragePool", "Gemm", "GlobalAveragePool", "InstanceNormalization"] {
        operators.insert(name, |context, node| finer(context, node, &HALVES));
    }
}

/// Sums of halves come to more than halves can be.
const HALVES: [(DatumType, DatumType); 1] = [(DatumType::F16, DatumType::F32)];

/// tract adds integers up in 32 bits. So they are exact up to 53.
pub(super) const SUMS: [(DatumType, DatumType); 2] =
    [(DatumType::F16, DatumType::F32), (DatumType::I64, DatumType::F64)];

/// tract begins with the largest finite number, of which a coarser type makes an infinity: which is
/// right where all are infinite, or there are none. Of doubles it stays the finite one.
pub(super) const EXTREMES: [(DatumType, DatumType); 2] =
    [(DatumType::F16, DatumType::F32), (DatumType::F32, DatumType::F64)];

/// tract's operator in a finer type than its input has, where `types` name one.
pub(super) fn finer(
    context: &ParsingContext,
    node: &NodeProto,
    types: &'static [(DatumType, DatumType)],
) -> Built {
    rewired(context, node, Finer { types, is_complex: false })
}

fn dft(context: &ParsingContext, node: &NodeProto) -> Built {
    // tract looks at it for these only.
    let is_on = |name: &str| TractResult::Ok(node.get_attr_opt::<i64>(name)?.unwrap_or(0) != 0);
    let has_length = node.input.get(1).is_some_and(|name| !name.is_empty());
    ensure!(
        !has_length || is_on("inverse")? && is_on("onesided")?,
        "dft_length is given: pad or slice the signal instead"
    );
    const TYPES: [(DatumType, DatumType); 1] = [(DatumType::F32, DatumType::F64)];
    // Since opset 20 the axis is an input, and where there is none it is the one before the number's
    // parts: tract takes the second.
    let has_axis = node.input.get(2).is_some_and(|name| !name.is_empty());
    let need = match context.onnx_operator_set_version {
        ..20 => Need::Axis(node.get_attr_opt::<i64>("axis")?.unwrap_or(1)),
        _ if has_axis => Need::Axis(-2),
        _ => Need::Rank(3),
    };
    let finer = rewired(context, node, Finer { types: &TYPES, is_complex: true })?;
    ranks::checked_with(finer, need, 1..3)
}

#[derive(Debug, Clone)]
struct Finer {
    types: &'static [(DatumType, DatumType)],
    /// The last axis is a number's parts, or its real one only.
    is_complex: bool,
}

impl Wiring for Finer {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?.clone();
        let types = self.types.iter().find(|(from, _)| *from == fact.datum_type);
        let Some(&(from, to)) = types else {
            return inner.wire(prefix, model, inputs);
        };
        let mut inputs: TVec<OutletId> = inputs.into();
        if self.is_complex && fact.shape.last() == Some(&1.to_dim()) {
            let mut pads = vec![(0, 0); fact.rank()];
            pads[fact.rank() - 1] = (0, 1);
            let pad = Pad { mode: PadMode::Constant(rctensor0(0f32)), pads };
            inputs[0] = model.wire_node(format!("{prefix}.complex"), pad, &inputs[..1])?[0];
        }
        for (index, input) in inputs.iter_mut().enumerate() {
            // The others of integers are axes.
            let is_value = index == 0 || from.is_float();
            if is_value && model.outlet_fact(*input)?.datum_type == from {
                let name = format!("{prefix}.finer_{index}");
                *input = model.wire_node(name, cast(to), &[*input])?[0];
            }
        }
        let outputs = inner.wire(&format!("{prefix}.inner"), model, &inputs)?;
        model.wire_node(prefix, cast(from), &outputs)
    }
}

/// tract's forgets to multiply by alpha.
#[derive(Debug)]
struct Celu {
    alpha: f32,
}

fn celu(_context: &ParsingContext, node: &NodeProto) -> Built {
    let alpha = node.get_attr_opt::<f32>("alpha")?.unwrap_or(1.0);
    built(node, Celu { alpha })
}

impl Kernel for Celu {
    fn name(&self) -> &'static str {
        "Celu"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::F16, DatumType::F32, DatumType::F64])?;
        Ok(tvec![Form::new(input.datum, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let mut output = input.cast_to::<f32>()?.into_owned();
        let mut plain = output.try_as_plain_ram_mut()?;
        for value in plain.as_slice_mut::<f32>()? {
            let below = self.alpha * (*value / self.alpha).exp_m1();
            *value = value.max(0.0) + below.min(0.0);
        }
        Ok(tvec![output.cast_to_dt(input.datum_type())?.into_owned()])
    }
}

#[derive(Debug)]
struct Det;

/// By elimination, the largest pivot first.
fn determinant(matrix: &mut [f64], size: usize) -> f64 {
    let mut product = 1.0;
    for column in 0..size {
        let size_of = |row: usize| matrix[row * size + column].abs();
        let pivot = (column..size).max_by(|&a, &b| size_of(a).total_cmp(&size_of(b)));
        let Some(pivot) = pivot.filter(|&pivot| matrix[pivot * size + column] != 0.0) else {
            return 0.0;
        };
        if pivot != column {
            (0..size).for_each(|at| matrix.swap(pivot * size + at, column * size + at));
            product = -product;
        }
        let (above, below) = matrix.split_at_mut((column + 1) * size);
        let above = &above[column * size..];
        product *= above[column];
        for row in below.chunks_exact_mut(size) {
            let factor = row[column] / above[column];
            row.iter_mut().zip(above).for_each(|(value, above)| *value -= factor * above);
        }
    }
    product
}

impl Kernel for Det {
    fn name(&self) -> &'static str {
        "Det"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::F16, DatumType::F32, DatumType::F64])?;
        let rank = input.shape.len();
        ensure!(rank >= 2, "expected matrices, got a shape of rank {rank}");
        Ok(tvec![Form::new(input.datum, input.shape[..rank - 2].iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let [rest @ .., rows, columns] = input.shape() else { bail!("expected matrices") };
        ensure!(rows == columns, "matrices of {rows} × {columns} have no determinant");
        let mut matrices = input.cast_to::<f64>()?.into_owned();
        let mut plain = matrices.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f64>()?;
        let count = checked_len(rest)?;
        let area = rows * columns;
        let found = (0..count).map(|index| determinant(&mut values[index * area..][..area], *rows));
        let found = tract_ndarray::ArrayD::from_shape_vec(rest, found.collect())?.into_tensor();
        Ok(tvec![found.cast_to_dt(input.datum_type())?.into_owned()])
    }
}

#[derive(Debug)]
struct CumProd {
    is_exclusive: bool,
    is_reversed: bool,
}

fn cum_prod(_context: &ParsingContext, node: &NodeProto) -> Built {
    let is_exclusive = node.get_attr_opt::<i64>("exclusive")?.unwrap_or(0) != 0;
    let is_reversed = node.get_attr_opt::<i64>("reverse")?.unwrap_or(0) != 0;
    built(node, CumProd { is_exclusive, is_reversed })
}

impl CumProd {
    fn multiply<T: Datum + Copy + std::ops::Mul<Output = T>>(
        &self,
        input: &Tensor,
        axis: usize,
        one: T,
        times: impl Fn(T, T) -> T,
    ) -> TractResult<Tensor> {
        let mut output = input.to_plain_array_view::<T>()?.into_owned();
        for mut lane in output.lanes_mut(tract_ndarray::Axis(axis)) {
            if self.is_reversed {
                lane.invert_axis(tract_ndarray::Axis(0));
            }
            let mut product = one;
            for value in &mut lane {
                let next = times(product, *value);
                *value = if self.is_exclusive { product } else { next };
                product = next;
            }
        }
        Ok(output.into_tensor())
    }
}

impl Kernel for CumProd {
    fn name(&self) -> &'static str {
        "CumProd"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, _] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let datum = input.datum;
        let wanted = [DatumType::F32, DatumType::F64, DatumType::I32, DatumType::I64];
        expect_datum(input, &[&wanted[..], &[DatumType::U32, DatumType::U64]].concat())?;
        Ok(tvec![Form::new(datum, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, axis] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let &[axis] = &*integers_of(axis)? else { bail!("expected one axis") };
        let axis = checked_axis(axis, input.rank())?;
        Ok(tvec![match input.datum_type() {
            DatumType::F32 => self.multiply(input, axis, 1f32, |a, b| a * b)?,
            DatumType::F64 => self.multiply(input, axis, 1f64, |a, b| a * b)?,
            DatumType::I32 => self.multiply(input, axis, 1, i32::wrapping_mul)?,
            DatumType::I64 => self.multiply(input, axis, 1, i64::wrapping_mul)?,
            DatumType::U32 => self.multiply(input, axis, 1, u32::wrapping_mul)?,
            _ => self.multiply(input, axis, 1, u64::wrapping_mul)?,
        }])
    }
}

/// Where each pixel of an output lies in the input, for GridSample.
#[derive(Debug)]
struct AffineGrid {
    aligns_corners: bool,
    sizes: Unknown,
}

fn affine_grid(context: &ParsingContext, node: &NodeProto) -> Built {
    let aligns_corners = node.get_attr_opt::<i64>("align_corners")?.unwrap_or(0) != 0;
    built(node, AffineGrid { aligns_corners, sizes: Unknown::new(context) })
}

impl AffineGrid {
    /// From -1 to 1: the middles of pixels, or the first one's and the last one's.
    fn place(&self, index: usize, size: usize) -> f64 {
        match self.aligns_corners {
            true if size == 1 => -1.0,
            true => 2.0 * index as f64 / (size - 1) as f64 - 1.0,
            false => (2 * index + 1) as f64 / size as f64 - 1.0,
        }
    }
}

impl Kernel for AffineGrid {
    fn name(&self) -> &'static str {
        "AffineGrid"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [theta, size] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        expect_datum(theta, &[DatumType::F16, DatumType::F32, DatumType::F64])?;
        let [batch, rows, _] = &*theta.shape else { bail!("expected matrices") };
        let axes = rows.to_usize().context("the number of axes is not known")?;
        ensure!(matches!(axes, 2 | 3), "a grid of {axes} axes");
        let sizes: TVec<TDim> = match &size.constant {
            Some(size) => {
                let sizes = sizes_of(size)?;
                ensure!(sizes.len() == axes + 2, "{} sizes for {axes} axes", sizes.len());
                sizes[2..].iter().map(|size| size.to_dim()).collect()
            }
            None => (0..axes).map(|index| self.sizes.dim(index)).collect(),
        };
        let shape = [batch.clone()].into_iter().chain(sizes).chain([axes.to_dim()]);
        Ok(tvec![Form::new(theta.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [theta, size] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (sizes, datum) = (sizes_of(size)?, theta.datum_type());
        let &[batch, axes, columns] = theta.shape() else { bail!("expected matrices") };
        ensure!(matches!(axes, 2 | 3) && columns == axes + 1, "matrices of {axes} × {columns}");
        ensure!(sizes.len() == axes + 2, "{} sizes for {axes} axes", sizes.len());
        ensure!(sizes[0] == batch, "{batch} matrices for a batch of {}", sizes[0]);
        let sizes = &sizes[2..];
        let shape: TVec<usize> =
            [batch].into_iter().chain(sizes.iter().copied()).chain([axes]).collect();
        let mut grid = Vec::with_capacity(checked_len(&shape)?);
        let theta = theta.cast_to::<f64>()?;
        let theta = theta.try_as_plain_ram()?;
        for matrix in theta.as_slice::<f64>()?.chunks_exact(axes * columns) {
            for index in tract_ndarray::indices(sizes) {
                // The last axis is the first coordinate.
                let places = (0..axes).rev().map(|axis| self.place(index[axis], sizes[axis]));
                let places: TVec<f64> = places.chain([1.0]).collect();
                let rows = matrix.chunks_exact(columns);
                grid.extend(
                    rows.map(|row| row.iter().zip(&places).map(|(a, b)| a * b).sum::<f64>()),
                );
            }
        }
        let grid = tract_ndarray::ArrayD::from_shape_vec(&*shape, grid)?.into_tensor();
        Ok(tvec![grid.cast_to_dt(datum)?.into_owned()])
    }
}
