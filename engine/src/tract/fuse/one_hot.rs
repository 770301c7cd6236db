//! Products of `x == [0, 1, …]` as ones and zeros with a constant matrix: each row of the result is a
//! row of the matrix, or zeros, so it is looked up. With what follows them, where that is constant.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::MultiBroadcastTo;
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::cast::{Cast, cast};
use tract_onnx::tract_hir::tract_core::ops::logic::CompEq;
use wisp_kernels::elementwise::{Function, apply};

use super::chain::{Chain, apply_post};
use super::product::axes;
use super::table::FusedTable;
use super::weights::PackedWeights;

/// Replaces such a product.
pub(super) fn fuse(
    model: &TypedModel,
    id: usize,
    packed: &PackedWeights,
) -> TractResult<Option<TypedModelPatch>> {
    let Some((numbers, matrix)) = one_hot(model, id)? else { return Ok(None) };
    let rank = model.outlet_fact(numbers)?.rank();
    let [rows, columns] = matrix.shape()[..] else { return Ok(None) };
    let chain = Chain::follow(model, id, rank - 1, vec![0.0; columns])?;
    let plain = matrix.try_as_plain_ram()?;
    let given = plain.as_slice::<f32>()?;
    // A value that is no number would spread to all rows.
    if chain.residual.is_some() || !given.iter().all(|value| value.is_finite()) {
        return Ok(None);
    }
    let how = (columns, &chain.scale, &chain.bias, chain.activation, chain.post);
    let table = packed.get(&how, given, || table_of(given, [rows, columns], &chain).ok());
    let Some(table) = table else { return Ok(None) };
    let mut patch = TypedModelPatch::default();
    let name = &model.node(id).name;
    let mut wire = patch.tap_model(model, numbers)?;
    wire = patch.wire_node(format!("{name}.numbers"), AxisOp::Rm(rank - 1), &[wire])?[0];
    if model.outlet_fact(numbers)?.datum_type != DatumType::I64 {
        wire = patch.wire_node(format!("{name}.wide"), cast(DatumType::I64), &[wire])?[0];
    }
    wire = patch.wire_node(name, FusedTable::new(table, true), &[wire])?[0];
    patch.shunt_outside(model, chain.last.into(), wire)?;
    Ok(Some(patch))
}

/// The matrix's rows with what follows them, and one more: what all other numbers come to.
fn table_of(matrix: &[f32], [rows, columns]: [usize; 2], chain: &Chain) -> TractResult<Tensor> {
    let mut table = Tensor::zero::<f32>(&[rows + 1, columns])?;
    let mut plain = table.try_as_plain_ram_mut()?;
    let values = plain.as_slice_mut::<f32>()?;
    values[..matrix.len()].copy_from_slice(matrix);
    for row in values.chunks_exact_mut(columns) {
        for (column, value) in row.iter_mut().enumerate() {
            let scale = chain.scale.as_ref().map_or(1.0, |scale| scale[column]);
            *value = *value * scale + chain.bias[column];
        }
    }
    apply(Function::Activation(chain.activation), values);
    apply_post(chain.post, values);
    Ok(table)
}

/// The numbers, \[…, 1\], and the matrix, \[rows, columns\], where node `id` is such a product.
fn one_hot(model: &TypedModel, id: usize) -> TractResult<Option<(OutletId, Tensor)>> {
    let node = model.node(id);
    let Some(axes) = axes(model, node)? else { return Ok(None) };
    for [left, right] in [[0, 1], [1, 0]] {
        let Some(numbers) = numbers(model, node.inputs[left])? else { continue };
        let Some(matrix) = model.outlet_fact(node.inputs[right])?.konst.clone() else { continue };
        let rank = model.outlet_fact(numbers)?.rank();
        let is_fit = node.outputs[0].fact.rank() == rank
            && axes.iter().all(|places| {
                match [places[left], places[right], places[2]] {
                    // Of the one-hot rows and the result, in the same order.
                    [Some(at), None, Some(to)] => at == to && at + 1 < rank,
                    // As these, where the matrix has an axis of size 1.
                    [Some(at), Some(one), Some(to)] => {
                        at == to && at + 1 < rank && matrix.shape()[one] == 1
                    }
                    // What is summed over.
                    [Some(at), Some(_), None] => at + 1 == rank,
                    [None, Some(_), Some(to)] => to + 1 == rank,
                    [None, Some(one), None] => matrix.shape()[one] == 1,
                    _ => false,
                }
            });
        if is_fit && let Some(matrix) = turned(&axes, right, left, &matrix)? {
            let rows = model.outlet_fact(node.inputs[left])?.shape[rank - 1].clone();
            return Ok((rows == matrix.shape()[0].to_dim()).then_some((numbers, matrix)));
        }
    }
    Ok(None)
}

/// The constant operand as \[what is summed over, what stays\].
fn turned(
    axes: &[[Option<usize>; 3]],
    right: usize,
    left: usize,
    konst: &Tensor,
) -> TractResult<Option<Tensor>> {
    let find = |is: &dyn Fn(&[Option<usize>; 3]) -> bool| {
        axes.iter().find(|places| is(places)).and_then(|places| places[right])
    };
    let summed = find(&|places| places[left].is_some() && places[2].is_none());
    let stays = find(&|places| places[left].is_none() && places[2].is_some());
    let (Some(summed), Some(stays)) = (summed, stays) else { return Ok(None) };
    let shape = [konst.shape()[summed], konst.shape()[stays]];
    if konst.datum_type() != DatumType::F32 || konst.len() != shape[0] * shape[1] || shape[1] == 0 {
        return Ok(None);
    }
    let mut konst = konst.clone();
    if summed > stays {
        let order = swapped(konst.rank(), summed, stays);
        konst = konst.permute_axes(&order)?;
    }
    konst.set_shape(&shape)?;
    Ok(Some(konst))
}

fn swapped(rank: usize, a: usize, b: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(a, b);
    order
}

/// `x`, \[…, 1\], of `x == [0, 1, …]` as ones and zeros.
fn numbers(model: &TypedModel, outlet: OutletId) -> TractResult<Option<OutletId>> {
    let node = model.node(outlet.node);
    if node.op_as::<Cast>().is_none_or(|op| op.to != DatumType::F32) {
        return Ok(None);
    }
    let equal = model.node(node.inputs[0].node);
    let is_equal = equal.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<CompEq>());
    let [a, b] = equal.inputs[..] else { return Ok(None) };
    for (x, numbers) in [(a, b), (b, a)] {
        let konst = model.outlet_fact(numbers)?.konst.clone().filter(|_| is_equal);
        let Some(konst) = konst else { continue };
        let from = model.node(x.node);
        let x = if from.op_is::<MultiBroadcastTo>() { from.inputs[0] } else { x };
        let (fact, all) = (model.outlet_fact(x)?, &equal.outputs[0].fact.shape);
        let is_one_each = fact.rank() == all.len()
            && fact.rank() > 0
            && fact.shape.last() == Some(&1.to_dim())
            && fact.shape.iter().zip(all.iter()).rev().skip(1).all(|(a, b)| a == b);
        let is_whole = [DatumType::I64, DatumType::I32].contains(&fact.datum_type)
            && konst.datum_type() == fact.datum_type;
        if is_one_each && is_whole && counts_up(&konst, fact.rank())? {
            return Ok(Some(x));
        }
    }
    Ok(None)
}

/// Whether it is 0, 1, … along the last axis.
fn counts_up(konst: &Tensor, rank: usize) -> TractResult<bool> {
    let is_row = konst.rank() == rank && konst.shape().last() == Some(&konst.len());
    let values = konst.cast_to::<i64>()?;
    let values = values.try_as_plain_ram()?;
    Ok(is_row && values.as_slice::<i64>()?.iter().zip(0..).all(|(value, at)| *value == at))
}
