//! MatMul as tract has it, and of two vectors, which it refuses; MatMulInteger, which tract takes for one of
//! matrices where it is one of vectors.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::matmul::compute_shapes;

use super::kernel::Built;
use super::theirs::{self, Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("MatMul", |context, node| rewired(context, node, Product));
    operators.insert("MatMulInteger", product_of_integers);
}

#[derive(Debug, Clone)]
struct Product;

impl Wiring for Product {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        match vectors(model, inputs)? {
            [true, true] => of_matrices(inner, prefix, model, inputs),
            _ => inner.wire(prefix, model, inputs),
        }
    }
}

fn product_of_integers(context: &ParsingContext, node: &NodeProto) -> Built {
    let inner = theirs::expansion(context, node)?;
    Ok((expand(ProductOfIntegers { inner }), Vec::new()))
}

#[derive(Debug, Clone)]
struct ProductOfIntegers {
    inner: Box<dyn Expansion>,
}

impl Expansion for ProductOfIntegers {
    fn name(&self) -> StaticName {
        self.inner.as_ref().name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let [a, b, ..] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        solver.given_2(&a.rank, &b.rank, move |solver, a_rank, b_rank| {
            if a_rank != 1 && b_rank != 1 {
                return self.inner.as_ref().rules(solver, inputs, outputs);
            }
            check_output_arity(outputs, 1)?;
            solver.equals(&outputs[0].datum_type, DatumType::I32)?;
            solver.given_2(&a.shape, &b.shape, move |solver, a, b| {
                let (.., shape) = compute_shapes(a, b, false, false, false)?;
                solver.equals(&outputs[0].shape, shape)
            })
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        match vectors(model, inputs)? {
            [false, false] => self.inner.as_ref().wire(prefix, model, inputs),
            _ => of_matrices(self.inner.as_ref(), prefix, model, inputs),
        }
    }
}

/// Which of the two that are multiplied are vectors.
fn vectors(model: &TypedModel, inputs: &[OutletId]) -> TractResult<[bool; 2]> {
    let [a, b, ..] = *inputs else { bail!("expected two inputs, got {}", inputs.len()) };
    Ok([model.outlet_fact(a)?.rank() == 1, model.outlet_fact(b)?.rank() == 1])
}

/// The product of a line and a column, where vectors come.
fn of_matrices(
    inner: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let [is_line, is_column] = vectors(model, inputs)?;
    let mut inputs: TVec<OutletId> = inputs.into();
    if is_line {
        inputs[0] = model.wire_node(format!("{prefix}.line"), AxisOp::Add(0), &inputs[..1])?[0];
    }
    if is_column {
        inputs[1] = model.wire_node(format!("{prefix}.column"), AxisOp::Add(1), &inputs[1..2])?[0];
    }
    let mut product = inner.wire(&format!("{prefix}.product"), model, &inputs)?;
    let rank = model.outlet_fact(product[0])?.rank();
    if is_column {
        let name = if is_line { format!("{prefix}.of_lines") } else { prefix.to_owned() };
        product = model.wire_node(name, AxisOp::Rm(rank - 1), &product)?;
    }
    if is_line {
        product = model.wire_node(prefix, AxisOp::Rm(rank - 2), &product)?;
    }
    Ok(product)
}
