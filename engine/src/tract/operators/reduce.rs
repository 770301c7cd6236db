//! Sums and the like over axes, by tract. Where an axis is of no elements, tract divides by their number,
//! which is none, or gives what is no number: here it is what ONNX Runtime gives.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::MultiBroadcastTo;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::internal::*;

use super::algebra::{EXTREMES, SUMS, finer};
use super::attributes::integers;
use super::kernel::{Built, integers_of};
use super::stable::{Wires, axes_of, reduce_log_sum_exp};
use super::theirs::{Wiring, built, wired, wired_by};

const NAMES: [&str; 10] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
];

pub(super) fn register(operators: &mut OnnxOpRegister) {
    for name in NAMES {
        operators.insert(name, reduce);
    }
}

fn reduce(context: &ParsingContext, node: &NodeProto) -> Built {
    let (inner, captured) = match &*node.op_type {
        "ReduceLogSum" | "ReduceProd" => built(context, node)?,
        "ReduceLogSumExp" => reduce_log_sum_exp(context, node)?,
        "ReduceMax" | "ReduceMin" => finer(context, node, &EXTREMES)?,
        _ => finer(context, node, &SUMS)?,
    };
    let of_none = match &*node.op_type {
        "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" => f64::NEG_INFINITY,
        "ReduceMin" => f64::INFINITY,
        "ReduceProd" => 1.0,
        _ => 0.0,
    };
    let reduced = Reduced {
        of_none,
        is_mean: node.op_type == "ReduceMean",
        axes: integers(node, "axes")?.to_vec(),
        keeps_axes: node.get_attr_opt::<i64>("keepdims")?.unwrap_or(1) == 1,
        none_is_none: node.get_attr_opt::<i64>("noop_with_empty_axes")?.unwrap_or(0) == 1,
    };
    Ok((wired_by(wired(&*inner)?, reduced), captured))
}

#[derive(Debug, Clone)]
struct Reduced {
    /// What no elements come to.
    of_none: f64,
    is_mean: bool,
    /// They may be an input, too.
    axes: Vec<i64>,
    keeps_axes: bool,
    none_is_none: bool,
}

impl Reduced {
    /// `None`: they are not known.
    fn axes(
        &self,
        model: &TypedModel,
        inputs: &[OutletId],
        rank: usize,
    ) -> TractResult<Option<TVec<usize>>> {
        let given = match inputs.get(1) {
            None => self.axes.clone(),
            Some(&axes) => match &model.outlet_fact(axes)?.konst {
                None => return Ok(None),
                Some(axes) => integers_of(axes)?,
            },
        };
        let is_all = given.is_empty() && !self.none_is_none;
        Ok(Some(if is_all { (0..rank).collect() } else { axes_of(&given, rank)? }))
    }

    fn of_none(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        (fact, axes): (&TypedFact, &[usize]),
    ) -> TractResult<TVec<OutletId>> {
        let sizes = fact.shape.iter().enumerate();
        let sizes = sizes.filter_map(|(axis, size)| match axes.contains(&axis) {
            true => self.keeps_axes.then(|| 1.to_dim()),
            false => Some(size.clone()),
        });
        let shape: TVec<TDim> = sizes.collect();
        let value = tensor0(self.of_none).cast_to_dt(fact.datum_type)?.into_owned();
        let value = value.broadcast_into_rank(shape.len())?;
        let value = model.add_const(format!("{prefix}.of_none"), value)?;
        model.wire_node(prefix, MultiBroadcastTo { shape: shape.into() }, &[value])
    }

    /// By how many there are, or by one.
    fn mean(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        input: OutletId,
        axes: &[usize],
    ) -> TractResult<TVec<OutletId>> {
        let datum = model.outlet_fact(input)?.datum_type;
        let finer = SUMS.iter().find(|(from, _)| *from == datum).map_or(datum, |&(_, to)| to);
        let mut wires = Wires { prefix, model };
        let x = wires.op("x", cast(finer), &[input])?;
        let mut mean = wires.mean("mean", x, axes)?;
        if !self.keeps_axes {
            for &axis in axes.iter().rev() {
                mean = wires.op(&format!("without_{axis}"), AxisOp::Rm(axis), &[mean])?;
            }
        }
        model.wire_node(prefix, cast(datum), &[mean])
    }
}

impl Wiring for Reduced {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?.clone();
        let axes = self.axes(model, inputs, fact.rank())?;
        let Some(axes) = axes.filter(|_| fact.datum_type.is_number()) else {
            return inner.wire(prefix, model, inputs);
        };
        let count: TDim = axes.iter().map(|&axis| fact.shape[axis].clone()).product();
        match count.as_i64() {
            Some(0) => self.of_none(prefix, model, (&fact, &axes[..])),
            // The fuser knows other sums and extremes of axes that are free.
            None if self.is_mean => self.mean(prefix, model, inputs[0], &axes),
            _ => inner.wire(prefix, model, inputs),
        }
    }
}
