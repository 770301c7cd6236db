//! Operators of ai.onnx.ml that work on each row's numbers: Scaler, Normalizer, Binarizer,
//! Imputer, FeatureVectorizer and ArrayFeatureExtractor.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::{floats, integers};
use super::kernel::{Built, Form, Kernel, NUMBERS, built, expect_datum, one, rows_and_columns};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Scaler", scaler);
    operators.insert("Normalizer", normalizer);
    operators.insert("Binarizer", binarizer);
    operators.insert("Imputer", imputer);
    operators.insert("FeatureVectorizer", feature_vectorizer);
    operators.insert("ArrayFeatureExtractor", array_feature_extractor);
}

/// What is done to each row, as `f32`.
#[derive(Debug)]
enum Rows {
    Scale { offset: Vec<f32>, scale: Vec<f32> },
    Normalize(Norm),
    Binarize { threshold: f32 },
}

#[derive(Debug)]
enum Norm {
    Max,
    L1,
    L2,
}

fn scaler(_context: &ParsingContext, node: &NodeProto) -> Built {
    let (offset, scale) = (floats(node, "offset")?, floats(node, "scale")?);
    ensure!(!offset.is_empty() && !scale.is_empty(), "offset or scale is empty");
    built(node, Rows::Scale { offset: offset.to_vec(), scale: scale.to_vec() })
}

fn normalizer(_context: &ParsingContext, node: &NodeProto) -> Built {
    built(
        node,
        Rows::Normalize(match node.get_attr_opt::<&str>("norm")?.unwrap_or("MAX") {
            "MAX" => Norm::Max,
            "L1" => Norm::L1,
            "L2" => Norm::L2,
            other => bail!("unknown norm {other:?}"),
        }),
    )
}

fn binarizer(_context: &ParsingContext, node: &NodeProto) -> Built {
    let threshold = node.get_attr_opt::<f32>("threshold")?.unwrap_or(0.0);
    built(node, Rows::Binarize { threshold })
}

impl Rows {
    fn apply(&self, row: &mut [f32]) {
        match self {
            Self::Scale { offset, scale } => {
                for (index, value) in row.iter_mut().enumerate() {
                    let of = |list: &[f32]| list[if list.len() == 1 { 0 } else { index }];
                    *value = (*value - of(offset)) * of(scale);
                }
            }
            Self::Normalize(norm) => norm.apply(row),
            Self::Binarize { threshold } => {
                row.iter_mut().for_each(|value| *value = f32::from(*value > *threshold));
            }
        }
    }
}

impl Norm {
    /// A row without a norm stays as it is. The largest value, not the largest magnitude, is
    /// ONNX Runtime's MAX.
    fn apply(&self, row: &mut [f32]) {
        let norm = match self {
            Self::Max => row.iter().copied().fold(f32::MIN, f32::max),
            Self::L1 => row.iter().map(|value| value.abs()).sum(),
            Self::L2 => row.iter().map(|value| value * value).sum::<f32>().sqrt(),
        };
        if norm != 0.0 {
            row.iter_mut().for_each(|value| *value /= norm);
        }
    }
}

impl Kernel for Rows {
    fn name(&self) -> &'static str {
        match self {
            Self::Scale { .. } => "Scaler",
            Self::Normalize(_) => "Normalizer",
            Self::Binarize { .. } => "Binarizer",
        }
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &NUMBERS)?;
        ensure!(!input.shape.is_empty(), "expected rows, got a scalar");
        let columns = input.shape[input.shape.len() - 1].to_usize();
        if let (Self::Scale { offset, scale }, Ok(columns)) = (self, columns) {
            let fits = |list: &[f32]| list.len() == 1 || list.len() == columns;
            let (offsets, scales) = (offset.len(), scale.len());
            ensure!(
                fits(offset) && fits(scale),
                "{offsets} offsets and {scales} scales for {columns} columns"
            );
        }
        if !matches!(self, Self::Binarize { .. }) {
            return Ok(tvec![Form::new(DatumType::F32, input.shape.iter().cloned())]);
        }
        expect_datum(input, &[DatumType::F32])?;
        Ok(tvec![input.clone()])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let columns = input.shape().last().copied().unwrap_or(1);
        let mut output = input.cast_to::<f32>()?.into_owned();
        if let Self::Scale { offset, scale } = self {
            let fits = |list: &[f32]| list.len() == 1 || list.len() == columns;
            ensure!(fits(offset) && fits(scale), "expected another number of columns");
        }
        let mut plain = output.try_as_plain_ram_mut()?;
        for row in plain.as_slice_mut::<f32>()?.chunks_exact_mut(columns.max(1)) {
            self.apply(row);
        }
        Ok(tvec![output])
    }
}

/// Puts another value for each that is missing: NaN, or one that stands for it.
#[derive(Debug)]
enum Imputer {
    Floats { missing: f32, imputed: Vec<f32> },
    Integers { missing: i64, imputed: Vec<i64> },
}

fn imputer(_context: &ParsingContext, node: &NodeProto) -> Built {
    let imputed = floats(node, "imputed_value_floats")?.to_vec();
    if !imputed.is_empty() {
        let missing = node.get_attr_opt::<f32>("replaced_value_float")?.unwrap_or(0.0);
        return built(node, Imputer::Floats { missing, imputed });
    }
    let imputed = integers(node, "imputed_value_int64s")?.to_vec();
    ensure!(!imputed.is_empty(), "no values to impute");
    let missing = node.get_attr_opt::<i64>("replaced_value_int64")?.unwrap_or(0);
    built(node, Imputer::Integers { missing, imputed })
}

impl Kernel for Imputer {
    fn name(&self) -> &'static str {
        "Imputer"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        let (datum, values) = match self {
            Self::Floats { imputed, .. } => (DatumType::F32, imputed.len()),
            Self::Integers { imputed, .. } => (DatumType::I64, imputed.len()),
        };
        expect_datum(input, &[datum])?;
        let columns = rows_and_columns(&input.shape, 1.to_dim())?.1.to_usize();
        let fits = columns.map_or(true, |columns| values == 1 || values == columns);
        ensure!(fits, "{values} values for another number of columns");
        Ok(tvec![input.clone()])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn impute<T: Datum + Copy>(
            input: &Tensor,
            imputed: &[T],
            is_missing: impl Fn(T) -> bool,
        ) -> TractResult<TVec<Tensor>> {
            let (_, columns) = rows_and_columns(input.shape(), 1)?;
            ensure!(imputed.len() == 1 || imputed.len() == columns, "another number of columns");
            let mut output = input.clone();
            let mut plain = output.try_as_plain_ram_mut()?;
            let values = plain.as_slice_mut::<T>()?.iter_mut();
            for (value, &instead) in values.zip(imputed.iter().cycle()) {
                if is_missing(*value) {
                    *value = instead;
                }
            }
            Ok(tvec![output])
        }
        let input = one(inputs)?;
        match self {
            Self::Floats { missing, imputed } => impute(input, imputed, |value: f32| {
                value == *missing || (value.is_nan() && missing.is_nan())
            }),
            Self::Integers { missing, imputed } => {
                impute(input, imputed, |value: i64| value == *missing)
            }
        }
    }
}

/// Puts the inputs' columns side by side.
#[derive(Debug)]
struct FeatureVectorizer {
    columns: Vec<usize>,
}

fn feature_vectorizer(_context: &ParsingContext, node: &NodeProto) -> Built {
    let columns = integers(node, "inputdimensions")?.iter().map(|&size| usize::try_from(size));
    let columns: Vec<usize> = columns.collect::<Result<_, _>>().context("inputdimensions")?;
    let (came, wanted) = (columns.len(), node.input.len());
    ensure!(came == wanted, "inputdimensions has {came} elements for {wanted} inputs");
    let total = columns.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    ensure!(total.is_some_and(|total| total < 1 << 31), "inputdimensions are too large");
    built(node, FeatureVectorizer { columns })
}

impl Kernel for FeatureVectorizer {
    fn name(&self) -> &'static str {
        "FeatureVectorizer"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        ensure!(inputs.len() == self.columns.len(), "got {} inputs", inputs.len());
        for (input, &wanted) in inputs.iter().zip(&self.columns) {
            expect_datum(input, &NUMBERS)?;
            let (_, columns) = rows_and_columns(&input.shape, 1.to_dim())?;
            let fits = columns.to_usize().map_or(true, |columns| columns == wanted);
            ensure!(fits, "an input has {columns} columns, expected {wanted}");
        }
        let first = inputs.first().context("expected inputs")?;
        let (rows, _) = rows_and_columns(&first.shape, 1.to_dim())?;
        let columns: usize = self.columns.iter().sum();
        Ok(tvec![Form::new(DatumType::F32, [rows, columns.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let rows = rows_and_columns(inputs.first().context("expected inputs")?.shape(), 1)?.0;
        let total: usize = self.columns.iter().sum();
        let mut output = Tensor::zero::<f32>(&[rows, total])?;
        let mut plain = output.try_as_plain_ram_mut()?;
        let written = plain.as_slice_mut::<f32>()?;
        let mut start = 0;
        for (input, &columns) in inputs.iter().zip(&self.columns) {
            let shape = rows_and_columns(input.shape(), 1)?;
            ensure!(shape == (rows, columns), "inputs of different shapes");
            let input = input.cast_to::<f32>()?;
            let input = input.try_as_plain_ram()?;
            let input = input.as_slice::<f32>()?;
            let rows = written.chunks_exact_mut(total.max(1));
            for (to, from) in rows.zip(input.chunks_exact(columns.max(1))) {
                to[start..start + columns].copy_from_slice(from);
            }
            start += columns;
        }
        Ok(tvec![output])
    }
}

/// Takes columns by their index.
#[derive(Debug)]
struct ArrayFeatureExtractor;

fn array_feature_extractor(_context: &ParsingContext, node: &NodeProto) -> Built {
    built(node, ArrayFeatureExtractor)
}

impl Kernel for ArrayFeatureExtractor {
    fn name(&self) -> &'static str {
        "ArrayFeatureExtractor"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, indices] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        expect_datum(indices, &[DatumType::I64])?;
        let (_, rest) = input.shape.split_last().context("expected columns, got a scalar")?;
        let taken = indices.shape.iter().product::<TDim>();
        let rows = if rest.is_empty() { tvec![1.to_dim()] } else { rest.into() };
        Ok(tvec![Form::new(input.datum, rows.into_iter().chain([taken]))])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn take<T: Datum>(
            input: &Tensor,
            indices: &[usize],
            shape: &[usize],
        ) -> TractResult<Tensor> {
            let columns = input.shape().last().copied().unwrap_or(1).max(1);
            let input = input.try_as_plain_ram()?;
            let rows = input.as_slice::<T>()?.chunks_exact(columns);
            let taken = rows.flat_map(|row| indices.iter().map(|&index| row[index].clone()));
            let taken = tract_ndarray::ArrayD::from_shape_vec(shape, taken.collect())?;
            Ok(taken.into_tensor())
        }
        let [input, indices] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (&columns, rest) = input.shape().split_last().context("got a scalar")?;
        let indices = indices.try_as_plain_ram()?;
        let in_range = |&index: &i64| {
            let index = usize::try_from(index).ok().filter(|&index| index < columns);
            index.context("an index out of range")
        };
        let indices = indices.as_slice::<i64>()?.iter().map(in_range);
        let indices: Vec<usize> = indices.collect::<TractResult<_>>()?;
        let mut shape: TVec<usize> = if rest.is_empty() { tvec![1] } else { rest.into() };
        shape.push(indices.len());
        let taken = dispatch_datum!(take(input.datum_type())(input, &indices, &shape))?;
        Ok(tvec![taken])
    }
}
