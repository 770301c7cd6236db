//! GELU by its tanh, `x / 2 × (1 + tanh(√(2 / π) × (x + 0.044715 x³)))`, however its exporter writes
//! it: what leads to the tanh, and from there on, is multiplied out and compared.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::tract_core::ops::math::{Add, Mul, Pow, PowConst, Square, Sub, Tanh};
use wisp_kernels::elementwise::Function;

use super::chain::by_channel;
use super::rows::{Found, RowFunction};

/// Nodes from the tanh to the end, and from a value back to `x`, at most.
const MAX_NODES: usize = 8;

/// Up to `x³`, lowest power first: without a factor of the tanh, and with it.
type Polynomial = [[f64; 4]; 2];

const GELU: Polynomial = [[0.0, 0.5, 0.0, 0.0]; 2];

/// What its tanh is taken of: `√(2 / π) × (x + 0.044715 x³)`.
const INNER: Polynomial =
    [[0.0, 0.797_884_560_802_865_4, 0.0, 0.797_884_560_802_865_4 * 0.044_715], [0.0; 4]];

/// The variables of a polynomial.
#[derive(Clone, Copy)]
struct Variables {
    x: OutletId,
    tanh: usize,
}

/// A GELU whose tanh is node `id`.
pub(super) fn gelu(model: &TypedModel, id: usize) -> TractResult<Option<Found>> {
    let is_tanh = model.node(id).op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<Tanh>());
    let (mut last, mut candidates) = (id, TVec::new());
    for _ in 0..MAX_NODES {
        let Some(next) = model.single_succ(last)?.filter(|_| is_tanh) else { break };
        // What a polynomial is made of takes one value or two, not thousands.
        if next.inputs.len() > 2 {
            break;
        }
        // Where it is x / 2, x is one further back.
        for &other in next.inputs.iter().filter(|input| input.node != last) {
            candidates.push(other);
            let further = &model.node(other.node).inputs;
            candidates.extend(further.iter().copied().filter(|_| further.len() <= 2));
        }
        for &x in &candidates {
            if is_gelu(model, Variables { x, tanh: id }, next.id)? {
                return Ok(Some((RowFunction::Each(Function::GeluTanh), x, next.id)));
            }
        }
        last = next.id;
    }
    Ok(None)
}

fn is_gelu(model: &TypedModel, of: Variables, last: usize) -> TractResult<bool> {
    let (fact, result) = (model.outlet_fact(of.x)?, &model.node(last).outputs[0].fact);
    if fact.shape != result.shape || fact.konst.is_some() {
        return Ok(false);
    }
    let is = |outlet, wanted| -> TractResult<bool> {
        let got = polynomial(model, of, outlet, MAX_NODES)?;
        Ok(got.is_some_and(|got| close(got, wanted)))
    };
    Ok(is(OutletId::new(last, 0), GELU)? && is(model.node(of.tanh).inputs[0], INNER)?)
}

fn close(got: Polynomial, wanted: Polynomial) -> bool {
    let pairs = got.as_flattened().iter().zip(wanted.as_flattened());
    pairs.into_iter().all(|(got, wanted)| (got - wanted).abs() <= 1e-6 * wanted.abs())
}

/// A value as a polynomial, where it is one.
fn polynomial(
    model: &TypedModel,
    of: Variables,
    outlet: OutletId,
    nodes: usize,
) -> TractResult<Option<Polynomial>> {
    if outlet == of.x {
        return Ok(Some([[0.0, 1.0, 0.0, 0.0], [0.0; 4]]));
    }
    if outlet.node == of.tanh {
        return Ok(Some([[0.0; 4], [1.0, 0.0, 0.0, 0.0]]));
    }
    if let Some(konst) = &model.outlet_fact(outlet)?.konst {
        let value = by_channel(konst, 0, 1).map(|value| f64::from(value[0]));
        return Ok(value.map(|value| [[value, 0.0, 0.0, 0.0], [0.0; 4]]));
    }
    let node = model.node(outlet.node);
    let Some(nodes) = nodes.checked_sub(1) else { return Ok(None) };
    let operand = |slot: usize| match node.inputs.get(slot) {
        Some(&input) => polynomial(model, of, input, nodes),
        None => Ok(None),
    };
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        let power = match op.0.downcast_ref::<PowConst>() {
            Some(op) => op.exponent,
            None if op.0.is::<Square>() => 2.0,
            None => return Ok(None),
        };
        return Ok(operand(0)?.and_then(|base| raise(base, f64::from(power))));
    }
    let Some(op) = node.op_as::<TypedBinOp>() else { return Ok(None) };
    let (Some(a), Some(b)) = (operand(0)?, operand(1)?) else { return Ok(None) };
    Ok(if op.0.is::<Add>() {
        Some(sum(a, b, 1.0))
    } else if op.0.is::<Sub>() {
        Some(sum(a, b, -1.0))
    } else if op.0.is::<Mul>() {
        product(a, b)
    } else if op.0.is::<Pow>() {
        (b == [[b[0][0], 0.0, 0.0, 0.0], [0.0; 4]]).then(|| raise(a, b[0][0])).flatten()
    } else {
        None
    })
}

fn sum(a: Polynomial, b: Polynomial, factor: f64) -> Polynomial {
    [0, 1].map(|tanh| [0, 1, 2, 3].map(|x| a[tanh][x] + factor * b[tanh][x]))
}

fn product(a: Polynomial, b: Polynomial) -> Option<Polynomial> {
    let mut product = Polynomial::default();
    for (i, a) in a.as_flattened().iter().enumerate() {
        for (j, b) in b.as_flattened().iter().enumerate().filter(|(_, b)| a * **b != 0.0) {
            let (x, tanh) = (i % 4 + j % 4, i / 4 + j / 4);
            *product.get_mut(tanh)?.get_mut(x)? += a * b;
        }
    }
    Some(product)
}

fn raise(base: Polynomial, power: f64) -> Option<Polynomial> {
    match power {
        2.0 => product(base, base),
        3.0 => product(base, product(base, base)?),
        _ => None,
    }
}
