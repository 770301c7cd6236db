//! Slice, of which tract refuses ends that are known when it runs only and lie beyond an axis or count from
//! its end, and takes some known ones for others.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::StridedSlice;

use super::kernel::{Built, Form, Kernel, Unknown, checked_axis, integers_of, typed, whole};
use super::stable::axes_of;
use super::theirs;
use crate::tract::fuse::Barrier;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Slice", slice);
}

fn slice(context: &ParsingContext, node: &NodeProto) -> Built {
    let (theirs, captured) = theirs::built(context, node)?;
    // Before opset 10 all was known.
    let Some(inner) = theirs.as_op().downcast_ref::<StridedSlice>() else {
        return Ok((theirs, captured));
    };
    let slice = Slice { inner: inner.clone(), sizes: Unknown::new(context) };
    Ok((expand(slice), Vec::new()))
}

#[derive(Debug, Clone)]
struct Slice {
    inner: StridedSlice,
    sizes: Unknown,
}

impl Expansion for Slice {
    fn name(&self) -> StaticName {
        "Slice".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let [axes, steps] = [self.inner.optional_axes_input, self.inner.optional_steps_input];
        check_input_arity(inputs, 3 + [axes, steps].iter().flatten().count())?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        solver.equals(&outputs[0].rank, &inputs[0].rank)?;
        for list in &inputs[1..] {
            solver.equals(&list.rank, 1)?;
        }
        for list in &inputs[2..] {
            solver.equals(&list.shape[0], &inputs[1].shape[0])?;
        }
        if let Some(axes) = axes {
            solver.given_2(&inputs[0].rank, &inputs[axes].value, move |solver, rank, axes| {
                let rank = usize::try_from(rank)?;
                let sliced = axes_of(&integers_of(&axes)?, rank)?;
                for axis in (0..rank).filter(|axis| !sliced.contains(axis)) {
                    solver.equals(&outputs[0].shape[axis], &inputs[0].shape[axis])?;
                }
                Ok(())
            })?;
        }
        solver.given(&inputs[0].shape, move |solver, shape| {
            let lists = inputs[1..].iter().map(|list| &list.value);
            solver.given_all(lists, move |solver, known| match self.left(&shape, &known)? {
                Some(left) => solver.equals(&outputs[0].shape, left),
                None => Ok(()),
            })
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let konst = |index: usize| TractResult::Ok(model.outlet_fact(inputs[index])?.konst.clone());
        let known = (1..inputs.len()).map(konst).collect::<TractResult<TVec<_>>>()?;
        let mut inputs: TVec<OutletId> = inputs.into();
        let [axes, steps] = [self.inner.optional_axes_input, self.inner.optional_steps_input];
        let fact = model.outlet_fact(inputs[0])?.clone();
        let all_known = known.iter().cloned().collect::<Option<Vec<Arc<Tensor>>>>();
        let lists = all_known.map(|known| self.lists(&fact.shape, &known)).transpose()?;
        let Some(lists) = lists.filter(|lists| !lists.may_reach_beyond(&fact.shape)) else {
            let at = axes.and_then(|index| known[index - 1].as_deref());
            let slice = SliceOfTheRun {
                axes_input: axes,
                steps_input: steps,
                axes: at.map(integers_of).transpose()?,
                sizes: self.sizes.clone(),
            };
            for (index, input) in inputs.iter_mut().enumerate().skip(1) {
                *input = whole(model, prefix, index, *input)?;
            }
            return model.wire_node(prefix, typed(slice), &inputs);
        };
        // tract takes places by steps before an operator rather than after it, also before those
        // that compute of all places (Softmax). Sizes are computed while planning, not by a run.
        let has_steps = lists.steps.iter().any(|&step| step != 1);
        if has_steps && fact.konst.is_none() && fact.datum_type != DatumType::TDim {
            let name = format!("{prefix}.barrier");
            inputs[0] = model.wire_node(name, Barrier, &inputs[..1])?[0];
        }
        inputs[1] = model.add_const(format!("{prefix}.starts"), lists.starts)?;
        inputs[2] = model.add_const(format!("{prefix}.ends"), lists.ends)?;
        if let Some(index) = steps {
            inputs[index] = model.add_const(format!("{prefix}.steps"), tensor1(&lists.steps))?;
        }
        model.wire_node(prefix, self.inner.clone(), &inputs)
    }
}

/// What is known of a slice, for tract to mean by it what ONNX Runtime does: tract cuts numbers off at 32
/// bits, and takes some that point beyond an axis for others.
struct Lists {
    axes: Vec<usize>,
    starts: Arc<Tensor>,
    ends: Arc<Tensor>,
    steps: Vec<i32>,
}

impl Slice {
    /// `known` are all inputs but the first.
    fn lists(&self, shape: &[TDim], known: &[Arc<Tensor>]) -> TractResult<Lists> {
        let [starts, ends, ..] = known else { bail!("got {} lists", known.len()) };
        let list = |index: Option<usize>| {
            let list = index.and_then(|index| known.get(index - 1));
            list.map(|list| integers_of(list)).transpose()
        };
        let axes = list(self.inner.optional_axes_input)?;
        let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = list(self.inner.optional_steps_input)?;
        let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
        let fits = [ends.len(), axes.len(), steps.len()].iter().all(|&of| of == starts.len());
        ensure!(fits, "starts, ends, axes and steps of different lengths");
        ensure!(!steps.contains(&0), "a step of zero");
        let axes = axes.iter().map(|&axis| checked_axis(axis, shape.len()));
        let axes: Vec<usize> = axes.collect::<TractResult<_>>()?;
        let mut steps: Vec<i64> = steps.iter().map(|&step| step.clamp(-FAR, FAR)).collect();
        let (mut starts, mut ends) = (starts.clone(), ends.clone());
        // Sizes that are free stay as they are.
        if let (Ok(mut from), Ok(mut to)) = (integers_of(&starts), integers_of(&ends)) {
            for (index, &axis) in axes.iter().enumerate() {
                let slice = [from[index], to[index], steps[index]];
                [from[index], to[index], steps[index]] = for_tract(&shape[axis], slice);
            }
            (starts, ends) = (rctensor1(&from), rctensor1(&to));
        }
        let steps = steps.into_iter().map(i32::try_from).collect::<Result<Vec<i32>, _>>()?;
        Ok(Lists { axes, starts, ends, steps })
    }

    /// The shape of what is left, unless only a run finds it.
    fn left(&self, shape: &[TDim], known: &[Arc<Tensor>]) -> TractResult<Option<TVec<TDim>>> {
        let lists = self.lists(shape, known)?;
        if lists.may_reach_beyond(shape) {
            return Ok(None);
        }
        let Lists { axes, starts, ends, steps } = lists;
        let mut left: TVec<TDim> = shape.into();
        for (index, axis) in axes.into_iter().enumerate() {
            let slice = self.inner.prepare_one_dim(index, &shape[axis], &starts, &ends, &steps)?;
            left[axis] = slice.soft_len()?;
        }
        Ok(Some(left))
    }
}

impl Lists {
    /// Whether there may be fewer places along an axis than are asked for, where only a run finds how many
    /// there are. One place is taken for there.
    fn may_reach_beyond(&self, shape: &[TDim]) -> bool {
        let (Ok(starts), Ok(ends)) = (integers_of(&self.starts), integers_of(&self.ends)) else {
            return false;
        };
        let mut slices = self.axes.iter().zip(&self.steps).zip(starts.iter().zip(&ends));
        slices.any(|((&axis, &step), (&start, &end))| {
            let is_whole = start == 0 && step == 1 && NO_END.contains(&end);
            let is_one = end.checked_sub(start) == Some(1);
            is_found(&shape[axis]) && !is_whole && !is_one
        })
    }
}

/// Whether only a run finds a size, by the names that tract's operators and ours give to such. What a file
/// names alike is sliced as it runs, too.
fn is_found(size: &TDim) -> bool {
    let is_so = |symbol: &Symbol| {
        let name = symbol.to_string();
        let is_number = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
        name.strip_prefix('x').is_some_and(is_number)
            || name.strip_prefix('n').is_some_and(|rest| !rest.is_empty() && is_number(rest))
    };
    size.as_i64().is_none() && size.symbols().iter().any(is_so)
}

/// No axis is that long.
const FAR: i64 = 1 << 30;

/// Ends that are an axis's own, whichever way steps go.
const NO_END: [i64; 2] = [i32::MAX as i64, i64::MAX];

/// No place of an axis, by start, end and step.
const NOTHING: [i64; 3] = [0, 0, 1];

/// Start, end and step by which tract takes the places that these mean.
fn for_tract(size: &TDim, slice: [i64; 3]) -> [i64; 3] {
    let Some(size) = size.as_i64() else { return of_free_size(slice) };
    let ([start, end], step) = (within(size, slice), slice[2]);
    if (end - start).signum() != step.signum() {
        return NOTHING;
    }
    // To tract -1 is the last place, not the one before the first.
    let end = if (0..size).contains(&end) { end } else { NO_END[1] };
    [start, end, step.clamp(-size, size)]
}

/// The same where all that is known of a size is that it is not far.
fn of_free_size([start, end, step]: [i64; 3]) -> [i64; 3] {
    let is_far = |place: i64| place <= -FAR || place >= FAR;
    let is_nothing = match step > 0 {
        true => start >= FAR || end <= -FAR,
        false => end >= FAR && !NO_END.contains(&end),
    };
    if is_nothing {
        return NOTHING;
    }
    let start = match is_far(start) {
        true if start < 0 => 0,
        true => -1,
        false => start,
    };
    [start, if is_far(end) { NO_END[1] } else { end }, step]
}

/// Where a slice of an axis starts and ends.
fn within(size: i64, [start, end, step]: [i64; 3]) -> [i64; 2] {
    let from_start = |place: i64| if place < 0 { place.saturating_add(size) } else { place };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let start = from_start(start).clamp(low.max(0).min(high), high);
    let end = match NO_END.contains(&end) {
        true if step > 0 => high,
        true => low,
        false => from_start(end).clamp(low, high),
    };
    [start, end]
}

/// Inputs as ONNX has them: the tensor, starts, ends, and maybe axes and steps.
#[derive(Debug)]
struct SliceOfTheRun {
    axes_input: Option<usize>,
    steps_input: Option<usize>,
    /// Where they are known.
    axes: Option<Vec<i64>>,
    sizes: Unknown,
}

/// Which of an axis's places are taken, in their order.
fn taken(size: usize, [start, end, step]: [i64; 3]) -> TractResult<Vec<usize>> {
    ensure!(step != 0, "a step of zero");
    let [start, end] = within(i64::try_from(size)?, [start, end, step]);
    let mut places = Vec::new();
    let mut place = start;
    while if step > 0 { place < end } else { place > end } {
        places.push(usize::try_from(place)?);
        place = place.saturating_add(step);
    }
    Ok(places)
}

impl Kernel for SliceOfTheRun {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = inputs.first().context("no input")?;
        let rank = input.shape.len();
        let mut shape = input.shape.clone();
        let axes = self.axes.iter().flatten().map(|&axis| checked_axis(axis, rank));
        let mut axes: Vec<usize> = axes.collect::<TractResult<_>>()?;
        if self.axes.is_none() {
            axes = (0..rank).collect();
        }
        for axis in axes {
            shape[axis] = self.sizes.dim(axis);
        }
        Ok(tvec![Form::new(input.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn take<T: Datum>(input: &Tensor, axis: usize, places: &[usize]) -> TractResult<Tensor> {
            let view = input.to_plain_array_view::<T>()?;
            Ok(view.select(tract_ndarray::Axis(axis), places).into_tensor())
        }
        let [input, starts, ends, ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let list = |index: Option<usize>| {
            index.and_then(|index| inputs.get(index)).map(|list| integers_of(list)).transpose()
        };
        let (starts, ends) = (integers_of(starts)?, integers_of(ends)?);
        let axes = list(self.axes_input)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = list(self.steps_input)?.unwrap_or_else(|| vec![1; starts.len()]);
        let fits = [ends.len(), axes.len(), steps.len()].iter().all(|&of| of == starts.len());
        ensure!(fits, "starts, ends, axes and steps of different lengths");
        // What is taken is copied, not what it is taken of.
        let mut output = input.clone();
        for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
            let axis = checked_axis(axis, output.rank())?;
            let (size, slice) = (output.shape()[axis], [start, end, step]);
            output = match within(i64::try_from(size)?, slice) {
                [start, end] if step == 1 && start < end => {
                    output.slice(axis, usize::try_from(start)?, usize::try_from(end)?)?
                }
                _ => {
                    let places = taken(size, slice)?;
                    dispatch_datum!(take(output.datum_type())(&output, axis, &places))?
                }
            }
            .into_tvalue();
        }
        Ok(tvec![output.into_tensor()])
    }
}
