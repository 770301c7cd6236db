//! Operators whose values decide how much comes out: Compress, TopK and Unique.

use std::cmp::Ordering;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, Unknown, built, checked_axis, expect_datum, one, only, typed_with, whole,
};
use super::theirs::{Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Compress", compress);
    operators.insert("TopK", top_k);
    operators.insert("Unique", unique);
}

/// What stands at these places of an axis, or of all elements in a row.
fn select(input: &Tensor, axis: Option<usize>, places: &[usize]) -> TractResult<Tensor> {
    fn select<T: Datum>(
        input: &Tensor,
        axis: Option<usize>,
        places: &[usize],
    ) -> TractResult<Tensor> {
        let view = input.to_plain_array_view::<T>()?;
        let selected = match axis {
            Some(axis) => view.select(tract_ndarray::Axis(axis), places),
            None => {
                let flat = view.to_shape(view.len())?;
                flat.select(tract_ndarray::Axis(0), places).into_dyn()
            }
        };
        Ok(selected.into_tensor())
    }
    dispatch_datum!(select(input.datum_type())(input, axis, places))
}

/// A form like the input's, with another size on the axis, or a row of that size.
fn resized(input: &Form, axis: Option<i64>, size: TDim) -> TractResult<Form> {
    let Some(axis) = axis else { return Ok(Form::new(input.datum, [size])) };
    let mut shape = input.shape.clone();
    let axis = checked_axis(axis, shape.len())?;
    shape[axis] = size;
    Ok(Form::new(input.datum, shape))
}

#[derive(Debug)]
struct Compress {
    axis: Option<i64>,
    left: Unknown,
}

fn compress(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.get_attr_opt::<i64>("axis")?;
    built(node, Compress { axis, left: Unknown::new(context) })
}

fn places_of(condition: &Tensor) -> TractResult<Vec<usize>> {
    let plain = condition.try_as_plain_ram()?;
    let held = plain.as_slice::<bool>()?.iter().enumerate().filter(|(_, holds)| **holds);
    Ok(held.map(|(place, _)| place).collect())
}

impl Kernel for Compress {
    fn name(&self) -> &'static str {
        "Compress"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, condition] = inputs else { bail!("expected two inputs") };
        expect_datum(condition, &[DatumType::Bool])?;
        let size = match &condition.constant {
            Some(condition) => places_of(condition)?.len().to_dim(),
            None => self.left.dim(0),
        };
        Ok(tvec![resized(input, self.axis, size)?])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, condition] = inputs else { bail!("expected two inputs") };
        let axis = self.axis.map(|axis| checked_axis(axis, input.rank())).transpose()?;
        let size = axis.map_or(input.len(), |axis| input.shape()[axis]);
        let places = places_of(condition)?;
        let fits = places.last().is_none_or(|&last| last < size);
        ensure!(fits, "a condition of {} for {size} elements", condition.len());
        Ok(tvec![select(input, axis, &places)?])
    }
}

/// tract's, which fills up with zeros where more are asked for than there are: that is refused.
#[derive(Debug, Clone)]
struct TopK {
    axis: i64,
    is_largest: bool,
    /// Where planning knows it, by sizes that may be free.
    count: Option<TDim>,
    taken: Unknown,
}

fn top_k(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(-1);
    let is_largest = node.get_attr_opt::<i64>("largest")?.unwrap_or(1) == 1;
    let taken = Unknown::new(context);
    rewired(context, node, TopK { axis, is_largest, count: None, taken })
}

/// How many are taken of an axis.
fn count_of(k: &Tensor, size: &TDim) -> TractResult<TDim> {
    ensure!(k.len() == 1, "k has {} elements, expected one", k.len());
    let Ok(count) = only::<i64>(k) else {
        // A size that is free.
        return Ok(k.try_as_plain_ram()?.as_slice::<TDim>()?[0].clone());
    };
    let fits = (0..=size.as_i64().unwrap_or(i64::MAX)).contains(&count);
    ensure!(fits, "k is {count}, for an axis of {size}");
    Ok(count.to_dim())
}

impl Wiring for TopK {
    fn wire(
        &self,
        _inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let [input, k] = *inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (fact, known) = (model.outlet_fact(input)?, &model.outlet_fact(k)?.konst);
        let size = &fact.shape[checked_axis(self.axis, fact.rank())?];
        let count = known.as_ref().map(|k| count_of(k, size)).transpose()?;
        // A run has numbers for sizes that are free.
        let k = whole(model, prefix, 1, k)?;
        model.wire_node(prefix, typed_with(Self { count, ..self.clone() }, 2), &[input, k])
    }
}

impl Kernel for TopK {
    fn name(&self) -> &'static str {
        "TopK"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, k] = inputs else { bail!("expected two inputs") };
        let axis = checked_axis(self.axis, input.shape.len())?;
        let count = match (&self.count, &k.constant) {
            (Some(count), _) => count.clone(),
            (None, Some(k)) => count_of(k, &input.shape[axis])?,
            (None, None) => self.taken.dim(0),
        };
        let values = resized(input, Some(self.axis), count)?;
        let places = Form::new(DatumType::I64, values.shape.iter().cloned());
        Ok(tvec![values, places])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, k] = inputs else { bail!("expected two inputs") };
        let axis = checked_axis(self.axis, input.rank())?;
        let count = count_of(k, &input.shape()[axis].to_dim())?.to_usize()?;
        dispatch_numbers!(first_of(input.datum_type())(input, axis, count, self.is_largest))
    }
}

/// So many of each lane along an axis, in order, the first of equals before the others; and their places.
fn first_of<T: Datum + Copy + PartialOrd>(
    input: &Tensor,
    axis: usize,
    count: usize,
    is_largest: bool,
) -> TractResult<TVec<Tensor>> {
    let axis = tract_ndarray::Axis(axis);
    let input = input.to_plain_array_view::<T>()?;
    let mut shape: TVec<usize> = input.shape().into();
    shape[axis.0] = count;
    let mut values = tract_ndarray::ArrayD::from_elem(&*shape, T::default());
    let mut places = tract_ndarray::ArrayD::from_elem(&*shape, 0i64);
    let taken = values.lanes_mut(axis).into_iter().zip(places.lanes_mut(axis));
    let mut order: Vec<usize> = Vec::new();
    for (lane, (mut values, mut places)) in input.lanes(axis).into_iter().zip(taken) {
        let compare = |&left: &usize, &right: &usize| {
            let order = compare(&lane[left], &lane[right]);
            let order = if is_largest { order.reverse() } else { order };
            order.then(left.cmp(&right))
        };
        order.clear();
        order.extend(0..lane.len());
        if (1..order.len()).contains(&count) {
            order.select_nth_unstable_by(count, compare);
        }
        order.truncate(count);
        order.sort_unstable_by(compare);
        for (index, &place) in order.iter().enumerate() {
            (values[index], places[index]) = (lane[place], place as i64);
        }
    }
    Ok(tvec![values.into_tensor(), places.into_tensor()])
}

#[derive(Debug)]
struct Unique {
    axis: Option<i64>,
    is_sorted: bool,
    left: Unknown,
}

fn unique(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.get_attr_opt::<i64>("axis")?;
    let is_sorted = node.get_attr_opt::<i64>("sorted")?.unwrap_or(1) != 0;
    built(node, Unique { axis, is_sorted, left: Unknown::new(context) })
}

/// Equal slices share a group.
struct Groups {
    /// Where each group's first slice stands.
    first: Vec<usize>,
    of_slice: Vec<i64>,
    counts: Vec<i64>,
}

/// NaNs stand behind all numbers, and are one.
fn compare<T: PartialOrd>(left: &T, right: &T) -> Ordering {
    let is_nan = |value: &T| value.partial_cmp(value).is_none();
    left.partial_cmp(right).unwrap_or_else(|| is_nan(left).cmp(&is_nan(right)))
}

impl Groups {
    fn of<T: Datum + PartialOrd>(
        input: &Tensor,
        axis: Option<usize>,
        is_sorted: bool,
    ) -> TractResult<Self> {
        let view = input.to_plain_array_view::<T>()?;
        let slices: Vec<Vec<&T>> = match axis {
            Some(axis) => {
                let slices = view.axis_iter(tract_ndarray::Axis(axis));
                slices.map(|slice| slice.into_iter().collect()).collect()
            }
            None => view.iter().map(|value| vec![value]).collect(),
        };
        let order = |&left: &usize, &right: &usize| {
            let pairs = slices[left].iter().zip(&slices[right]);
            let mut orders = pairs.map(|(left, right)| compare(*left, *right));
            orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        };
        let mut places: Vec<usize> = (0..slices.len()).collect();
        // Stable: of equals, the first comes first.
        places.sort_by(order);
        let mut groups: Vec<&[usize]> =
            places.chunk_by(|left, right| order(left, right).is_eq()).collect();
        if !is_sorted {
            groups.sort_by_key(|group| group[0]);
        }
        let mut of_slice = vec![0; slices.len()];
        for (number, group) in groups.iter().enumerate() {
            group.iter().for_each(|&place| of_slice[place] = number as i64);
        }
        let first = groups.iter().map(|group| group[0]).collect();
        let counts = groups.iter().map(|group| group.len() as i64).collect();
        Ok(Self { first, of_slice, counts })
    }
}

impl Kernel for Unique {
    fn name(&self) -> &'static str {
        "Unique"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        let all = match self.axis {
            Some(axis) => input.shape[checked_axis(axis, input.shape.len())?].clone(),
            None => input.shape.iter().product(),
        };
        let (left, form) = (self.left.dim(0), |size| Form::new(DatumType::I64, [size]));
        let unique = resized(input, self.axis, left.clone())?;
        Ok(tvec![unique, form(left.clone()), form(all), form(left)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let axis = self.axis.map(|axis| checked_axis(axis, input.rank())).transpose()?;
        let sorted = self.is_sorted;
        let groups = match input.datum_type() {
            DatumType::String => Groups::of::<String>(input, axis, sorted)?,
            DatumType::Bool => Groups::of::<bool>(input, axis, sorted)?,
            datum => dispatch_numbers!(Groups::of(datum)(input, axis, sorted))?,
        };
        let unique = select(input, axis, &groups.first)?;
        let indices: Vec<i64> = groups.first.iter().map(|&place| place as i64).collect();
        let (indices, of_slice) = (tensor1(&indices), tensor1(&groups.of_slice));
        Ok(tvec![unique, indices, of_slice, tensor1(&groups.counts)])
    }
}
