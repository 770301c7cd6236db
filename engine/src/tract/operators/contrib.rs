//! ONNX Runtime's own operators that are not written with ONNX's (`contrib`): distances, inverses, and
//! the masks that its Attention takes.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, built, checked_axis, checked_len, expect_datum, integers_of, one,
};
use crate::tract::contrib::{MASK, UNPACKED};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert(MASK, |_, node| {
        let filter = node.get_attr_opt::<f32>("mask_filter_value")?.unwrap_or(-10_000.0);
        built(node, AttentionMask { filter })
    });
    operators.insert(UNPACKED, unpacked);
    operators.insert("CDist", cdist);
    operators.insert("ExpandDims", |_, node| built(node, ExpandDims));
    operators.insert("Inverse", |_, node| built(node, Inverse));
}

/// What is added to the scores of hidden keys, shaped \[batch, 1, queries, keys\], from queries, keys,
/// a mask, and the past keys if there are any.
#[derive(Debug)]
struct AttentionMask {
    filter: f32,
}

impl AttentionMask {
    /// Batch, queries and keys.
    fn sizes<D: Clone + std::ops::Add<Output = D>>(
        queries: &[D],
        keys: &[D],
        past: Option<&[D]>,
    ) -> TractResult<[D; 3]> {
        let ([batch, queries, _], [_, keys, _]) = (queries, keys) else {
            bail!("queries of rank {} and keys of rank {}", queries.len(), keys.len());
        };
        let keys = match past {
            None => keys.clone(),
            Some([_, _, past, _]) => past.clone() + keys.clone(),
            Some(past) => bail!("past keys of rank {}", past.len()),
        };
        Ok([batch.clone(), queries.clone(), keys])
    }

    /// # Errors
    /// A mask of a shape that is none of those.
    fn seen<'a>(
        [batch, queries, keys]: [usize; 3],
        mask: &'a [i64],
        shape: &[usize],
    ) -> TractResult<Seen<'a>> {
        Ok(match *shape {
            [length] if length == batch || length == 3 * batch + 2 => Seen::Until(mask),
            [length] if length == 2 * batch => Seen::Between(&mask[..batch], &mask[batch..]),
            [_, 1] => Seen::All,
            [rows, columns] if (rows, columns) == (batch, keys) => Seen::Where(mask, [keys, 0]),
            [rows, seen, columns] if (rows, seen, columns) == (batch, queries, keys) => {
                Seen::Where(mask, [queries * keys, keys])
            }
            _ => bail!("a mask of {shape:?} for {batch} rows of {queries} queries and {keys} keys"),
        })
    }
}

/// The keys that are not hidden.
enum Seen<'a> {
    All,
    /// Those before a row's end, after which there may be more numbers.
    Until(&'a [i64]),
    /// Those from a row's start, the second ones, until its end.
    Between(&'a [i64], &'a [i64]),
    /// Those whose number is not zero, which lies this far on for each row and query.
    Where(&'a [i64], [usize; 2]),
}

impl Seen<'_> {
    fn contains(&self, row: usize, query: usize, key: usize) -> bool {
        match self {
            Self::All => true,
            Self::Until(ends) => (key as i64) < ends[row],
            Self::Between(ends, starts) => (starts[row]..ends[row]).contains(&(key as i64)),
            Self::Where(mask, [rows, queries]) => mask[row * rows + query * queries + key] > 0,
        }
    }
}

impl Kernel for AttentionMask {
    fn name(&self) -> &'static str {
        "AttentionMask"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [q, k, mask, past @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        expect_datum(mask, &[DatumType::I32, DatumType::I64])?;
        expect_datum(q, &[DatumType::F32, DatumType::F16])?;
        let past = past.first().map(|past| &*past.shape);
        let [batch, queries, keys] = Self::sizes(&q.shape, &k.shape, past)?;
        Ok(tvec![Form::new(q.datum, [batch, 1.to_dim(), queries, keys])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [q, k, mask, past @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let sizes = Self::sizes(q.shape(), k.shape(), past.first().map(|past| past.shape()))?;
        let values = integers_of(mask)?;
        let seen = Self::seen(sizes, &values, mask.shape())?;
        let [batch, queries, keys] = sizes;
        let shape = [batch, 1, queries, keys];
        checked_len(&shape)?;
        let addends = tract_ndarray::ArrayD::from_shape_fn(&shape[..], |at| {
            if seen.contains(at[0], at[2], at[3]) { 0.0 } else { self.filter }
        });
        Ok(tvec![addends.into_tensor().cast_to_dt(q.datum_type())?.into_owned()])
    }
}

/// Numbers from weights of a few bits, several in a byte, the low ones first. Each block of a row
/// has a scale, and a zero point, or the middle for one.
#[derive(Debug)]
struct Unpacked {
    rows: usize,
    columns: usize,
    bits: usize,
    block: usize,
}

fn unpacked(_context: &ParsingContext, node: &NodeProto) -> Built {
    let size = |name: &str, otherwise: Option<i64>| -> TractResult<usize> {
        let size = node.get_attr_opt::<i64>(name)?.or(otherwise);
        let size = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
        size.with_context(|| format!("no {name}"))
    };
    let (rows, columns) = (size("N", None)?, size("K", None)?);
    let (bits, block) = (size("bits", Some(4))?, size("block_size", None)?);
    ensure!(matches!(bits, 2 | 4 | 8), "weights of {bits} bits");
    ensure!(block.is_power_of_two() && block >= 16, "blocks of {block}");
    checked_len(&[rows, columns])?;
    built(node, Unpacked { rows, columns, bits, block })
}

impl Unpacked {
    fn value(&self, bytes: &[u8], index: usize) -> u8 {
        let of_byte = 8 / self.bits;
        let shift = index % of_byte * self.bits;
        bytes[index / of_byte] >> shift & (u8::MAX >> (8 - self.bits))
    }
}

impl Kernel for Unpacked {
    fn name(&self) -> &'static str {
        "Unpacked"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [weights, scales, ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        expect_datum(weights, &[DatumType::U8])?;
        expect_datum(scales, &[DatumType::F32, DatumType::F16])?;
        Ok(tvec![Form::new(scales.datum, [self.rows.to_dim(), self.columns.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [weights, scales, zeros @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let &Self { rows, columns, bits, block } = self;
        let blocks = columns.div_ceil(block);
        let row_bytes = blocks * block * bits / 8;
        let datum = scales.datum_type();
        let (scales, weights) = (scales.cast_to::<f32>()?, weights.try_as_plain_ram()?);
        let (scales, weights) = (scales.try_as_plain_ram()?, weights.as_slice::<u8>()?);
        let scales = scales.as_slice::<f32>()?;
        ensure!(weights.len() == rows * row_bytes, "{} bytes of weights", weights.len());
        ensure!(scales.len() == rows * blocks, "{} scales for {rows} × {blocks}", scales.len());
        let middle = f32::from(1u8 << (bits - 1));
        let zeros: Vec<f32> = match zeros.first() {
            None => vec![middle; rows * blocks],
            Some(zeros) if zeros.datum_type() == DatumType::U8 => {
                let of_row = (blocks * bits).div_ceil(8);
                ensure!(zeros.len() == rows * of_row, "{} bytes of zero points", zeros.len());
                let plain = zeros.try_as_plain_ram()?;
                let rows = plain.as_slice::<u8>()?.chunks_exact(of_row);
                let zeros = |row| (0..blocks).map(move |index| self.value(row, index).into());
                rows.flat_map(zeros).collect()
            }
            Some(zeros) => zeros.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(),
        };
        ensure!(zeros.len() == rows * blocks, "{} zero points", zeros.len());
        let numbers = tract_ndarray::Array2::from_shape_fn((rows, columns), |(row, column)| {
            let value = self.value(&weights[row * row_bytes..][..row_bytes], column);
            let block = row * blocks + column / block;
            (f32::from(value) - zeros[block]) * scales[block]
        });
        Ok(tvec![numbers.into_tensor().cast_to_dt(datum)?.into_owned()])
    }
}

/// Distances of each row of one matrix to each row of another.
#[derive(Debug)]
struct CDist {
    is_squared: bool,
}

fn cdist(_context: &ParsingContext, node: &NodeProto) -> Built {
    let is_squared = match node.get_attr_opt::<&str>("metric")?.unwrap_or("sqeuclidean") {
        "sqeuclidean" => true,
        "euclidean" => false,
        other => bail!("unknown metric {other:?}"),
    };
    built(node, CDist { is_squared })
}

impl CDist {
    fn distances<T>(&self, left: &Tensor, right: &Tensor) -> TractResult<Tensor>
    where
        T: Datum + Copy + tract_num_traits::Float + std::iter::Sum,
    {
        let columns = left.shape()[1];
        let (left_rows, right_rows) = (left.shape()[0], right.shape()[0]);
        checked_len(&[left_rows, right_rows])?;
        let (left, right) = (left.try_as_plain_ram()?, right.try_as_plain_ram()?);
        let (left, right) = (left.as_slice::<T>()?, right.as_slice::<T>()?);
        let distances = tract_ndarray::Array2::from_shape_fn((left_rows, right_rows), |(i, j)| {
            let pairs = left[i * columns..][..columns].iter().zip(&right[j * columns..][..columns]);
            let squares: T = pairs.map(|(&a, &b)| (a - b) * (a - b)).sum();
            if self.is_squared { squares } else { squares.sqrt() }
        });
        Ok(distances.into_tensor())
    }
}

impl Kernel for CDist {
    fn name(&self) -> &'static str {
        "CDist"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        expect_datum(left, &[DatumType::F32, DatumType::F64])?;
        ensure!(left.datum == right.datum, "rows of {:?} and {:?}", left.datum, right.datum);
        let ([rows, _], [others, _]) = (&*left.shape, &*right.shape) else {
            bail!("expected two matrices");
        };
        Ok(tvec![Form::new(left.datum, [rows.clone(), others.clone()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (columns, others) = (left.shape()[1], right.shape()[1]);
        ensure!(columns == others, "rows of {columns} and of {others} columns");
        Ok(tvec![match left.datum_type() {
            DatumType::F64 => self.distances::<f64>(left, right)?,
            _ => self.distances::<f32>(left, right)?,
        }])
    }
}

/// Unsqueeze, as it was called once.
#[derive(Debug)]
struct ExpandDims;

impl ExpandDims {
    fn expand<D: Clone>(shape: &[D], axis: &Tensor, one: D) -> TractResult<TVec<D>> {
        let &[axis] = &*integers_of(axis)? else { bail!("expected one axis") };
        let mut shape: TVec<D> = shape.into();
        shape.insert(checked_axis(axis, shape.len() + 1)?, one);
        Ok(shape)
    }
}

impl Kernel for ExpandDims {
    fn name(&self) -> &'static str {
        "ExpandDims"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, axis] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let axis = axis.constant.as_ref().context("the axis is not known")?;
        Ok(tvec![Form::new(input.datum, Self::expand(&input.shape, axis, 1.to_dim())?)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, axis] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let shape = Self::expand(input.shape(), axis, 1)?;
        Ok(tvec![(**input).clone().into_shape(&shape)?])
    }
}

/// Of each matrix in the last two axes.
#[derive(Debug)]
struct Inverse;

impl Inverse {
    /// By Gauss and Jordan, the largest pivot first.
    fn invert(matrix: &mut [f64], size: usize) -> TractResult<Vec<f64>> {
        let mut inverse = vec![0.0; size * size];
        (0..size).for_each(|at| inverse[at * size + at] = 1.0);
        for column in 0..size {
            let size_of = |row: usize| matrix[row * size + column].abs();
            let pivot = (column..size).max_by(|&a, &b| size_of(a).total_cmp(&size_of(b)));
            let pivot = pivot.filter(|&pivot| matrix[pivot * size + column] != 0.0);
            let pivot = pivot.context("a matrix that has no inverse")?;
            for matrix in [&mut *matrix, &mut inverse] {
                (0..size).for_each(|at| matrix.swap(pivot * size + at, column * size + at));
            }
            let factor = matrix[column * size + column];
            for row in (0..size).filter(|&row| row != column) {
                let share = matrix[row * size + column] / factor;
                for matrix in [&mut *matrix, &mut inverse] {
                    for at in 0..size {
                        matrix[row * size + at] -= share * matrix[column * size + at];
                    }
                }
            }
            for matrix in [&mut *matrix, &mut inverse] {
                matrix[column * size..][..size].iter_mut().for_each(|value| *value /= factor);
            }
        }
        Ok(inverse)
    }
}

impl Kernel for Inverse {
    fn name(&self) -> &'static str {
        "Inverse"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::F16, DatumType::F32, DatumType::F64])?;
        ensure!(input.shape.len() >= 2, "expected matrices");
        Ok(tvec![Form::new(input.datum, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let [.., rows, columns] = *input.shape() else { bail!("expected matrices") };
        ensure!(rows == columns, "matrices of {rows} × {columns} have no inverse");
        let mut matrices = input.cast_to::<f64>()?.into_owned();
        let mut plain = matrices.try_as_plain_ram_mut()?;
        for matrix in plain.as_slice_mut::<f64>()?.chunks_exact_mut((rows * columns).max(1)) {
            let inverse = Self::invert(matrix, rows)?;
            matrix.copy_from_slice(&inverse);
        }
        Ok(tvec![matrices.cast_to_dt(input.datum_type())?.into_owned()])
    }
}
