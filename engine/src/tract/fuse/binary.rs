//! Sums, differences, products and quotients in single precision, where sizes are free: tract has
//! operators that are quick for those that it knows. And sums of whole numbers of 32 bits, of which it has
//! none, as what a convolution of such gives and a bias.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::math::{Add, Div, Mul, Sub};

use crate::tract::compiled::{Reader, Stored, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tract) enum FusedBinary {
    Add,
    Sub,
    Mul,
    Div,
}

/// Replaces one of free sizes, or a sum of whole numbers.
pub(super) fn fuse(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let Some(op) = operator(node) else { return Ok(None) };
    let fact = &node.outputs[0].fact;
    let is_ours = match fact.datum_type {
        DatumType::F32 => !fact.shape.is_concrete(),
        DatumType::I32 => op == FusedBinary::Add,
        _ => false,
    };
    let mut inputs = model.node_input_facts(id)?.into_iter();
    if !is_ours || inputs.any(|input| input.datum_type != fact.datum_type) {
        return Ok(None);
    }
    TypedModelPatch::replace_single_op(model, node, &node.inputs, op).map(Some)
}

fn operator(node: &TypedNode) -> Option<FusedBinary> {
    let op = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none())?;
    if op.0.is::<Add>() {
        Some(FusedBinary::Add)
    } else if op.0.is::<Sub>() {
        Some(FusedBinary::Sub)
    } else if op.0.is::<Mul>() {
        Some(FusedBinary::Mul)
    } else {
        op.0.is::<Div>().then_some(FusedBinary::Div)
    }
}

impl FusedBinary {
    const ALL: [Self; 4] = [Self::Add, Self::Sub, Self::Mul, Self::Div];

    /// `y = y ∘ other`, or `other ∘ y`, where `other` is repeated along its axes of size 1.
    fn run(self, y: &mut [f32], shape: &[usize], other: &[f32], of: &[usize], is_first: bool) {
        match (self, is_first) {
            (Self::Add, _) => apply(y, shape, other, of, |y, other| y + other),
            (Self::Mul, _) => apply(y, shape, other, of, |y, other| y * other),
            (Self::Sub, true) => apply(y, shape, other, of, |y, other| y - other),
            (Self::Sub, false) => apply(y, shape, other, of, |y, other| other - y),
            (Self::Div, true) => apply(y, shape, other, of, |y, other| y / other),
            (Self::Div, false) => apply(y, shape, other, of, |y, other| other / y),
        }
    }
}

fn apply<T: Copy>(
    y: &mut [T],
    shape: &[usize],
    other: &[T],
    of: &[usize],
    function: impl Fn(T, T) -> T,
) {
    // The last axes are one run: of as many values, or of one for all.
    let is_one = of.last().is_none_or(|&size| size == 1);
    let axes = || shape.iter().zip(of).rev();
    let count = match is_one {
        true => axes().take_while(|(_, of)| **of == 1).count(),
        false => axes().take_while(|(size, of)| size == of).count(),
    };
    let outer = shape.len() - count;
    let run: usize = shape[outer..].iter().product();
    let each = if is_one { 1 } else { run };
    let mut at = vec![0; outer];
    for y in y.chunks_exact_mut(run.max(1)) {
        let place = at.iter().zip(of).fold(0, |place, (&at, &of)| place * of + at % of.max(1));
        let other = &other[place * each..][..each];
        match other {
            [other] => y.iter_mut().for_each(|y| *y = function(*y, *other)),
            _ => y.iter_mut().zip(other).for_each(|(y, other)| *y = function(*y, *other)),
        }
        for axis in (0..outer).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
}

impl Stored for FusedBinary {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.variant(*self as u8, &())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Self::ALL.get(usize::from(u8::take(from)?)).copied()
    }
}

impl Op for FusedBinary {
    fn name(&self) -> StaticName {
        format!("Fused{self:?}").into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedBinary {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (Some(b), Some(a)) = (inputs.pop(), inputs.pop()) else { bail!("two operands") };
        let shape = multi_broadcast(&[a.shape(), b.shape()])?;
        let (a_fits, b_fits) = (a.shape() == &shape[..], b.shape() == &shape[..]);
        let (mut y, other, is_first) = match (a_fits, b_fits) {
            (true, _) => (a.into_tensor(), b, true),
            (false, true) => (b.into_tensor(), a, false),
            (false, false) => (a.broadcast_to_shape(&shape)?, b, true),
        };
        let is_whole = y.datum_type() == DatumType::I32;
        let mut plain = y.try_as_plain_ram_mut()?;
        let (values, of) = (other.try_as_plain_ram()?, other.shape());
        if is_whole && *self == Self::Add {
            // Past the largest come the lowest.
            apply(plain.as_slice_mut()?, &shape, values.as_slice::<i32>()?, of, i32::wrapping_add);
        } else {
            self.run(plain.as_slice_mut()?, &shape, values.as_slice()?, of, is_first);
        }
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for FusedBinary {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shapes = [inputs[0].shape.to_tvec(), inputs[1].shape.to_tvec()];
        let shape = multi_broadcast(&[&shapes[0], &shapes[1]])?;
        Ok(tvec!(inputs[0].datum_type.fact(&*shape)))
    }

    as_op!();
}
