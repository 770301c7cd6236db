//! Distances of each row of one matrix to each row of another: ONNX Runtime's CDist, and Scans that compute
//! nothing else, as skl2onnx writes them. All at once they take a tenth of what they take turn by turn.

use std::iter::Sum;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, ValueInfoProto, type_proto};
use tract_onnx::tract_hir::internal::*;

use super::super::bodies;
use super::attributes::integers;
use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum, integers_of, only};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("CDist", cdist);
}

/// What the differences of two rows come to.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Squares,
    RootOfSquares,
    Absolutes,
    /// The same, each raised to this.
    Powers(f64),
}

#[derive(Debug)]
struct CDist(Measure);

fn cdist(_context: &ParsingContext, node: &NodeProto) -> Built {
    let measure = match node.get_attr_opt::<&str>("metric")?.unwrap_or("sqeuclidean") {
        "sqeuclidean" => Measure::Squares,
        "euclidean" => Measure::RootOfSquares,
        other => bail!("unknown metric {other:?}"),
    };
    built(node, CDist(measure))
}

/// A Scan's operator, where each of its turns takes distances to one row.
pub(super) fn of_scan(context: &ParsingContext, node: &NodeProto) -> Option<Built> {
    Some(built(node, DistancesOfScan(measure_of(context, node)?)))
}

/// What a Scan measures: it has one matrix as its state, which its body passes on, and rows of another.
fn measure_of(context: &ParsingContext, node: &NodeProto) -> Option<Measure> {
    let is_usual = |name: &str| matches!(name, "body" | "num_scan_inputs");
    let is_plain = node.attribute.iter().all(|it| is_usual(&it.name))
        && node.get_attr::<i64>("num_scan_inputs").ok()? == 1
        && node.input.len() == 2
        && node.input.iter().all(|name| !name.is_empty());
    let body = node.get_attr::<&GraphProto>("body").ok()?;
    let ([state, row], [passed, distances]) = (&*body.input, &*body.output) else { return None };
    let (state_name, row_name) = (&*state.name, &*row.name);
    let are_taken = is_of_floats(state, 2)
        && is_of_floats(row, 1)
        && body.initializer.iter().all(|it| it.name != state_name && it.name != row_name);
    let is_passed = maker(body, &passed.name, "Identity")?.input == [state_name];
    let renamed = maker(body, &distances.name, "Identity").and_then(|it| it.input.first());
    let (measure, differences) = sum_of(context, body, renamed.unwrap_or(&distances.name))?;
    let are_differences = maker(body, differences, "Sub")?.input == [state_name, row_name];
    (is_plain && are_taken && is_passed && are_differences).then_some(measure)
}

/// What a body sums along its matrix's rows, and of which value.
fn sum_of<'a>(
    context: &ParsingContext,
    body: &'a GraphProto,
    sums: &str,
) -> Option<(Measure, &'a String)> {
    let constant = |name: &str| {
        let tensor = body.initializer.iter().find(|it| it.name == name)?;
        context.load_tensor(tensor).ok()
    };
    let squares = maker(body, sums, "ReduceSumSquare");
    let sum = squares.or_else(|| maker(body, sums, "ReduceSum"))?;
    let (summed, axes) = sum.input.split_first()?;
    let axes = match axes {
        [] => integers(sum, "axes").ok()?.to_vec(),
        [axes] => integers_of(&constant(axes)?).ok()?,
        _ => return None,
    };
    let keeps_axes = sum.get_attr_opt::<i64>("keepdims").ok()?.unwrap_or(1) != 0;
    if keeps_axes || !matches!(&*axes, [1 | -1]) {
        return None;
    }
    if squares.is_some() {
        return Some((Measure::Squares, summed));
    }
    let (measure, absolutes) = match maker(body, summed, "Pow").map(|it| &*it.input) {
        None => (Measure::Absolutes, summed),
        Some([absolutes, exponent]) => {
            let exponent = constant(exponent).filter(|it| it.rank() <= 1)?;
            (Measure::Powers(only::<f64>(&exponent).ok()?), absolutes)
        }
        Some(_) => return None,
    };
    let [differences] = &*maker(body, absolutes, "Abs")?.input else { return None };
    Some((measure, differences))
}

/// The node that makes a value and nothing else, if it is of that operator.
fn maker<'a>(body: &'a GraphProto, value: &str, operator: &str) -> Option<&'a NodeProto> {
    body.node.iter().find(|it| it.op_type == operator && it.output == [value])
}

fn is_of_floats(value: &ValueInfoProto, rank: usize) -> bool {
    let value = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    value.is_some_and(|type_proto::Value::TensorType(tensor)| {
        [DataType::Float as i32, DataType::Double as i32].contains(&tensor.elem_type)
            && tensor.shape.as_ref().is_some_and(|shape| shape.dim.len() == rank)
    })
}

/// How many are taken before it is asked whether the run is over.
const DIFFERENCES_AT_ONCE: usize = 1 << 16;

impl Measure {
    fn of<T>(self, differences: impl Iterator<Item = T>) -> T
    where
        T: tract_num_traits::Float + Sum,
    {
        match self {
            Self::Squares => differences.map(|it| it * it).sum(),
            Self::RootOfSquares => differences.map(|it| it * it).sum::<T>().sqrt(),
            Self::Absolutes => differences.map(T::abs).sum(),
            Self::Powers(exponent) => {
                let exponent = <T as tract_num_traits::NumCast>::from(exponent);
                let exponent = exponent.unwrap_or_else(T::nan);
                differences.map(|it| it.abs().powf(exponent)).sum()
            }
        }
    }

    fn form(left: &Form, right: &Form) -> TractResult<Form> {
        expect_datum(left, &[DatumType::F32, DatumType::F64])?;
        ensure!(left.datum == right.datum, "rows of {:?} and {:?}", left.datum, right.datum);
        let ([rows, _], [others, _]) = (&*left.shape, &*right.shape) else {
            bail!("expected two matrices");
        };
        Ok(Form::new(left.datum, [rows.clone(), others.clone()]))
    }

    /// Of two matrices of one type.
    fn distances(self, left: &Tensor, right: &Tensor) -> TractResult<Tensor> {
        let (columns, others) = (left.shape()[1], right.shape()[1]);
        ensure!(columns == others, "rows of {columns} and of {others} columns");
        match left.datum_type() {
            DatumType::F64 => self.distances_of::<f64>(left, right),
            _ => self.distances_of::<f32>(left, right),
        }
    }

    fn distances_of<T>(self, left: &Tensor, right: &Tensor) -> TractResult<Tensor>
    where
        T: Datum + Copy + tract_num_traits::Float + Sum,
    {
        let columns = left.shape()[1];
        let (left_rows, right_rows) = (left.shape()[0], right.shape()[0]);
        let mut distances = Vec::with_capacity(checked_len(&[left_rows, right_rows])?);
        let (left, right) = (left.try_as_plain_ram()?, right.try_as_plain_ram()?);
        let (left, right) = (left.as_slice::<T>()?, right.as_slice::<T>()?);
        let rows_at_once = (DIFFERENCES_AT_ONCE / right.len().max(1)).max(1);
        for i in 0..left_rows {
            if i.is_multiple_of(rows_at_once) {
                bodies::ask()?;
            }
            let row = &left[i * columns..][..columns];
            distances.extend((0..right_rows).map(|j| {
                let pairs = row.iter().zip(&right[j * columns..][..columns]);
                self.of(pairs.map(|(&a, &b)| a - b))
            }));
        }
        let distances = tract_ndarray::Array2::from_shape_vec((left_rows, right_rows), distances)?;
        Ok(distances.into_tensor())
    }
}

impl Kernel for CDist {
    fn name(&self) -> &'static str {
        "CDist"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![Measure::form(left, right)?])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![self.0.distances(left, right)?])
    }
}

/// Its outputs are the state, and for each row that came its distances to the state's.
#[derive(Debug)]
struct DistancesOfScan(Measure);

impl Kernel for DistancesOfScan {
    fn name(&self) -> &'static str {
        "Scan"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [state, rows] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![state.clone(), Measure::form(rows, state)?])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [state, rows] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        // One column stands for as many as the other has, as in Sub.
        let widened =
            |matrix: &Tensor, columns| matrix.broadcast_to_shape(&[matrix.shape()[0], columns]);
        let distances = match (state.shape()[1], rows.shape()[1]) {
            (1, columns) if columns != 1 => self.0.distances(rows, &widened(state, columns)?)?,
            (columns, 1) if columns != 1 => self.0.distances(&widened(rows, columns)?, state)?,
            _ => self.0.distances(rows, state)?,
        };
        Ok(tvec![(**state).clone(), distances])
    }
}
