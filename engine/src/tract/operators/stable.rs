//! What tract computes by formulas that overflow, or that take two large numbers from each other:
//! ReduceLogSumExp, LogSoftmax, Softplus and MeanVarianceNormalization. Here the largest value goes
//! first, or the mean. And GlobalLpPool, of which tract makes a mean. All are wired of operators
//! that a compiled plan can hold.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::math::{
    abs, add, div, exp, ln, max, min, mul, neg, pow, sqrt, sub,
};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax};
use tract_onnx::tract_hir::internal::*;

use super::attributes::integers;
use super::kernel::{Built, checked_axis, integers_of};
use super::theirs::{Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("GlobalLpPool", global_lp_pool);
    operators.insert("LogSoftmax", log_softmax);
    operators.insert("MeanVarianceNormalization", normalized);
    operators.insert("Sigmoid", |context, node| rewired(context, node, Formula::Sigmoid));
    operators.insert("Softplus", softplus);
}

/// For `reduce`, which registers it.
pub(super) fn reduce_log_sum_exp(context: &ParsingContext, node: &NodeProto) -> Built {
    let flag = |name: &str| node.get_attr_opt::<i64>(name);
    let keeps_axes = flag("keepdims")?.unwrap_or(1) == 1;
    let none_is_none = flag("noop_with_empty_axes")?.unwrap_or(0) == 1;
    let axes = integers(node, "axes")?.to_vec();
    rewired(context, node, Formula::LogSumExp { axes, keeps_axes, none_is_none })
}

fn log_softmax(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.get_attr_opt::<i64>("axis")?;
    // An axis and all after it were one before opset 13.
    let is_one_axis = context.onnx_operator_set_version >= 13;
    let axis = axis.unwrap_or(if is_one_axis { -1 } else { 1 });
    rewired(context, node, Formula::LogSoftmax { axis, is_one_axis })
}

fn global_lp_pool(context: &ParsingContext, node: &NodeProto) -> Built {
    let power = node.get_attr_opt::<i64>("p")?.unwrap_or(2);
    ensure!(power > 0, "p is {power}");
    rewired(context, node, Formula::Norm { power })
}

fn softplus(context: &ParsingContext, node: &NodeProto) -> Built {
    rewired(context, node, Formula::Softplus)
}

fn normalized(context: &ParsingContext, node: &NodeProto) -> Built {
    let axes = match integers(node, "axes")? {
        [] => vec![0, 2, 3],
        axes => axes.to_vec(),
    };
    rewired(context, node, Formula::Normalized { axes })
}

#[derive(Debug, Clone)]
enum Formula {
    /// The axes may be an input, too.
    LogSumExp {
        axes: Vec<i64>,
        keeps_axes: bool,
        none_is_none: bool,
    },
    LogSoftmax {
        axis: i64,
        is_one_axis: bool,
    },
    /// Of all places of a channel.
    Norm {
        power: i64,
    },
    /// Of doubles, for which tract has none.
    Sigmoid,
    Softplus,
    Normalized {
        axes: Vec<i64>,
    },
}

impl Wiring for Formula {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        if matches!(self, Formula::Sigmoid)
            && model.outlet_fact(inputs[0])?.datum_type != DatumType::F64
        {
            return inner.wire(prefix, model, inputs);
        }
        let fact = model.outlet_fact(inputs[0])?.clone();
        let (datum, rank) = (fact.datum_type, fact.rank());
        ensure!(datum.is_float(), "expected floats, got {datum:?}");
        let mut wires = Wires { prefix, model };
        // Halves are too coarse for sums.
        let finer = if datum == DatumType::F16 { DatumType::F32 } else { datum };
        let x = wires.op("x", cast(finer), &[inputs[0]])?;
        let y = match self {
            Formula::LogSumExp { axes, keeps_axes, none_is_none } => {
                let given = match inputs.get(1) {
                    None => axes.clone(),
                    Some(&axes) => {
                        let axes = wires.model.outlet_fact(axes)?.konst.as_ref();
                        integers_of(axes.context("the axes are not known")?)?
                    }
                };
                let is_all = given.is_empty() && !none_is_none;
                let axes = if is_all { (0..rank).collect() } else { axes_of(&given, rank)? };
                wires.log_sum_exp(x, &axes, *keeps_axes)?
            }
            Formula::LogSoftmax { axis, is_one_axis } => {
                let axis = checked_axis(*axis, rank)?;
                let axes = if *is_one_axis { tvec![axis] } else { (axis..rank).collect() };
                wires.log_softmax(x, &axes)?
            }
            Formula::Norm { power } => wires.norm(x, *power as f64)?,
            Formula::Sigmoid => wires.sigmoid(x)?,
            Formula::Softplus => wires.softplus(x)?,
            Formula::Normalized { axes } => wires.normalized(x, &axes_of(axes, rank)?)?,
        };
        model.wire_node(prefix, cast(datum), &[y])
    }
}

pub(super) fn axes_of(axes: &[i64], rank: usize) -> TractResult<TVec<usize>> {
    let axes = axes.iter().map(|&axis| checked_axis(axis, rank));
    let mut axes: TVec<usize> = axes.collect::<TractResult<_>>()?;
    axes.sort_unstable();
    axes.dedup();
    Ok(axes)
}

/// A model to which nodes are added, and what their names start with.
pub(super) struct Wires<'a> {
    pub(super) prefix: &'a str,
    pub(super) model: &'a mut TypedModel,
}

impl Wires<'_> {
    pub(super) fn op(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        Ok(self.model.wire_node(format!("{}.{name}", self.prefix), op, inputs)?[0])
    }

    fn constant(&mut self, name: &str, value: f64, of: OutletId) -> TractResult<OutletId> {
        let fact = self.model.outlet_fact(of)?;
        let (datum, rank) = (fact.datum_type, fact.rank());
        let value = tensor0(value).cast_to_dt(datum)?.into_owned().broadcast_into_rank(rank)?;
        self.model.add_const(format!("{}.{name}", self.prefix), value)
    }

    fn reduced(
        &mut self,
        name: &str,
        x: OutletId,
        axes: &[usize],
        reducer: Reducer,
    ) -> TractResult<OutletId> {
        self.op(name, Reduce { axes: axes.into(), reducer }, &[x])
    }

    /// `m + ln(sum(exp(x - m)))` for the largest value `m`, or the finite number next to it.
    fn log_sum_exp(
        &mut self,
        x: OutletId,
        axes: &[usize],
        keeps_axes: bool,
    ) -> TractResult<OutletId> {
        let largest = self.reduced("largest", x, axes, Reducer::Max)?;
        let highest = match self.model.outlet_fact(x)?.datum_type {
            DatumType::F64 => f64::MAX,
            _ => f32::MAX.into(),
        };
        let (low, high) = (self.constant("low", -highest, x)?, self.constant("high", highest, x)?);
        let m = self.op("at_least", max(), &[largest, low])?;
        let m = self.op("finite", min(), &[m, high])?;
        let shifted = self.op("shifted", sub(), &[x, m])?;
        let exponentials = self.op("exponentials", exp(), &[shifted])?;
        let sum = self.reduced("sum", exponentials, axes, Reducer::Sum)?;
        let logarithm = self.op("logarithm", ln(), &[sum])?;
        let mut y = self.op("sum_of_all", add(), &[m, logarithm])?;
        if !keeps_axes {
            for &axis in axes.iter().rev() {
                y = self.op(&format!("without_{axis}"), AxisOp::Rm(axis), &[y])?;
            }
        }
        Ok(y)
    }

    /// `x - m + ln(max(softmax(x)))` for the largest value `m`, whose share is one by the sum of
    /// `exp(x - m)`.
    fn log_softmax(&mut self, x: OutletId, axes: &[usize]) -> TractResult<OutletId> {
        let largest = self.reduced("largest", x, axes, Reducer::Max)?;
        let softmax = Softmax { axes: axes.into(), ..Softmax::default() };
        let shares = self.op("shares", softmax, &[x])?;
        let share = self.reduced("largest_share", shares, axes, Reducer::Max)?;
        let logarithm = self.op("logarithm", ln(), &[share])?;
        let shifted = self.op("shifted", sub(), &[x, largest])?;
        self.op("shifted_again", add(), &[shifted, logarithm])
    }

    fn norm(&mut self, x: OutletId, power: f64) -> TractResult<OutletId> {
        let axes: TVec<usize> = (2..self.model.outlet_fact(x)?.rank()).collect();
        let size = self.op("size", abs(), &[x])?;
        let exponent = self.constant("exponent", power, x)?;
        let powers = self.op("powers", pow(), &[size, exponent])?;
        let sum = self.reduced("sum", powers, &axes, Reducer::Sum)?;
        let root = self.constant("root", 1.0 / power, x)?;
        self.op("norm", pow(), &[sum, root])
    }

    /// `1 / (1 + exp(-x))`
    fn sigmoid(&mut self, x: OutletId) -> TractResult<OutletId> {
        let one = self.constant("one", 1.0, x)?;
        let opposite = self.op("opposite", neg(), &[x])?;
        let exponential = self.op("exponential", exp(), &[opposite])?;
        let more = self.op("more", add(), &[exponential, one])?;
        self.op("of_one", div(), &[one, more])
    }

    /// `max(x, 0) + ln(1 + exp(-|x|))`
    fn softplus(&mut self, x: OutletId) -> TractResult<OutletId> {
        let (zero, one) = (self.constant("zero", 0.0, x)?, self.constant("one", 1.0, x)?);
        let positive = self.op("positive", max(), &[x, zero])?;
        let size = self.op("size", abs(), &[x])?;
        let opposite = self.op("opposite", neg(), &[size])?;
        let exponential = self.op("exponential", exp(), &[opposite])?;
        let more = self.op("more", add(), &[exponential, one])?;
        let logarithm = self.op("logarithm", ln(), &[more])?;
        self.op("of_both", add(), &[positive, logarithm])
    }

    /// `(x - mean) / (deviation + 1e-9)`, with the deviation of what the mean is taken off.
    fn normalized(&mut self, x: OutletId, axes: &[usize]) -> TractResult<OutletId> {
        const EPSILON: f64 = 1e-9;
        let mean = self.mean("mean", x, axes)?;
        let centred = self.op("centred", sub(), &[x, mean])?;
        let squares = self.op("squares", mul(), &[centred, centred])?;
        let variance = self.mean("variance", squares, axes)?;
        let deviation = self.op("deviation", sqrt(), &[variance])?;
        let epsilon = self.constant("epsilon", EPSILON, x)?;
        let deviation = self.op("not_zero", add(), &[deviation, epsilon])?;
        self.op("of_one", div(), &[centred, deviation])
    }

    /// Of no elements it is zero.
    pub(super) fn mean(
        &mut self,
        name: &str,
        x: OutletId,
        axes: &[usize],
    ) -> TractResult<OutletId> {
        let fact = self.model.outlet_fact(x)?.clone();
        let sum = self.reduced(&format!("{name}.sum"), x, axes, Reducer::Sum)?;
        let count: TDim = axes.iter().map(|&axis| fact.shape[axis].clone()).product();
        let count = tensor0(count.maxi(1.to_dim())).broadcast_into_rank(fact.rank())?;
        let count = self.model.add_const(format!("{}.{name}.count", self.prefix), count)?;
        let count = self.op(&format!("{name}.number"), cast(fact.datum_type), &[count])?;
        self.op(name, div(), &[sum, count])
    }
}
