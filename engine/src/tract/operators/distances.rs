//! Distances of each row of one matrix to each row of another: ONNX Runtime's CDist.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("CDist", cdist);
}

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
