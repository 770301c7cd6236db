//! Operators of numbers that point into tensors: GatherND and ScatterND, where tract takes those
//! that count from the end for wrong; Slice with ends and steps that are known when it runs only,
//! of which tract refuses those from the end, and passes over the steps without a word; Cast, which
//! makes sizes of all whole numbers and cuts those off at 32 bits; GridSample, but for what tract
//! takes from beyond a picture's border.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::InferenceRulesOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::{GatherNd, StridedSlice};

use super::kernel::{Built, Form, Kernel, Unknown, checked_axis, integers_of, typed};
use super::theirs;
use crate::tract::fuse::Barrier;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Cast", cast_node);
    operators.insert("GatherND", gather_nd);
    operators.insert("GridSample", grid_sample);
    operators.insert("ScatterND", scatter_nd);
    operators.insert("Slice", slice);
}

fn grid_sample(context: &ParsingContext, node: &NodeProto) -> Built {
    let is = |name: &str, values: &[&str]| -> TractResult<bool> {
        Ok(node.get_attr_opt::<&str>(name)?.is_some_and(|value| values.contains(&value)))
    };
    let is_wrong = is("mode", &["cubic", "bicubic"])? && is("padding_mode", &["border"])?;
    ensure!(!is_wrong, "cubic samples beyond a border are not served");
    theirs::built(context, node)
}

fn cast_node(context: &ParsingContext, node: &NodeProto) -> Built {
    match node.get_attr::<DatumType>("to")? {
        DatumType::I64 => Ok((expand(ToWhole), Vec::new())),
        _ => theirs::built(context, node),
    }
}

/// Whole numbers of 64 bits; sizes stay sizes.
#[derive(Debug, Clone)]
struct ToWhole;

impl ToWhole {
    fn datum(from: DatumType) -> DatumType {
        if from == DatumType::TDim { from } else { DatumType::I64 }
    }
}

impl Expansion for ToWhole {
    fn name(&self) -> StaticName {
        "Cast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].rank, &inputs[0].rank)?;
        solver.equals(&outputs[0].shape, &inputs[0].shape)?;
        solver.given(&inputs[0].datum_type, |solver, from| {
            solver.equals(&outputs[0].datum_type, Self::datum(from))
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        model.wire_node(prefix, cast(Self::datum(from)), inputs)
    }
}

fn gather_nd(_context: &ParsingContext, node: &NodeProto) -> Built {
    let batch_axes = node.get_attr_opt::<i64>("batch_dims")?.unwrap_or(0);
    let batch_axes = usize::try_from(batch_axes).context("batch_dims")?;
    let inner = Inner::Gather(GatherNd::new(batch_axes));
    Ok((expand(Counted { inner, batch_axes }), Vec::new()))
}

fn scatter_nd(context: &ParsingContext, node: &NodeProto) -> Built {
    let inner = Inner::Scatter(theirs::expansion(context, node)?);
    Ok((expand(Counted { inner, batch_axes: 0 }), Vec::new()))
}

/// tract's operator on indices that count from the start.
#[derive(Debug, Clone)]
struct Counted {
    inner: Inner,
    batch_axes: usize,
}

#[derive(Debug, Clone)]
enum Inner {
    Gather(GatherNd),
    Scatter(Box<dyn Expansion>),
}

impl Expansion for Counted {
    fn name(&self) -> StaticName {
        match &self.inner {
            Inner::Gather(_) => "GatherND".into(),
            Inner::Scatter(_) => "ScatterND".into(),
        }
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        // tract counts to the last axis, also where there is none.
        check_input_arity(inputs, if matches!(self.inner, Inner::Gather(_)) { 2 } else { 3 })?;
        solver.given_2(&inputs[0].rank, &inputs[1].rank, move |solver, data, indices| {
            ensure!(data > 0 && indices > 0, "ranks {data} and {indices}, expected 1 or more");
            match &self.inner {
                Inner::Gather(inner) => inner.rules(solver, inputs, outputs),
                Inner::Scatter(inner) => inner.as_ref().rules(solver, inputs, outputs),
            }
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = inputs.into();
        let known = model.outlet_fact(inputs[1])?.konst.clone();
        let known = known.map(|indices| integers_of(&indices)).transpose()?;
        if known.is_none_or(|indices| indices.iter().any(|&index| index < 0)) {
            let count = typed(FromStart { batch_axes: self.batch_axes });
            let name = format!("{prefix}.counted");
            inputs[1] = model.wire_node(name, count, &[inputs[0], inputs[1]])?[0];
        }
        match &self.inner {
            Inner::Gather(inner) => model.wire_node(prefix, inner.clone(), &inputs),
            Inner::Scatter(inner) => inner.as_ref().wire(prefix, model, &inputs),
        }
    }
}

/// Indices into a tensor, each row of them of one element or slice, counted from the start.
#[derive(Debug)]
struct FromStart {
    batch_axes: usize,
}

impl Kernel for FromStart {
    fn name(&self) -> &'static str {
        "FromStart"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [_, indices] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![Form::new(DatumType::I64, indices.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [data, indices] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let length = indices.shape().last().copied().context("expected rows of indices")?;
        let sizes = data.shape().get(self.batch_axes..).and_then(|sizes| sizes.get(..length));
        let sizes = sizes.context("more indices than axes")?;
        let mut counted = integers_of(indices)?;
        for row in counted.chunks_exact_mut(length.max(1)) {
            for (index, &size) in row.iter_mut().zip(sizes) {
                let from_start = if *index < 0 { *index + size as i64 } else { *index };
                let is_there = (0..size as i64).contains(&from_start);
                ensure!(is_there, "index {index} of an axis of {size}");
                *index = from_start;
            }
        }
        let counted = tract_ndarray::ArrayD::from_shape_vec(indices.shape(), counted)?;
        Ok(tvec![counted.into_tensor()])
    }
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
        self.inner.rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let konst = |index: usize| TractResult::Ok(model.outlet_fact(inputs[index])?.konst.clone());
        let known: TVec<Option<Arc<Tensor>>> =
            (1..inputs.len()).map(konst).collect::<TractResult<_>>()?;
        let at = |index: Option<usize>| index.and_then(|index| known[index - 1].as_deref());
        let steps = at(self.inner.optional_steps_input).map(integers_of).transpose()?;
        let has_steps = self.inner.optional_steps_input.is_some()
            && steps.is_none_or(|steps| steps.iter().any(|&step| step != 1));
        let is_of_the_run = |index: usize| {
            let datum = model.outlet_fact(inputs[index])?.datum_type;
            TractResult::Ok(known[index - 1].is_none() && datum != DatumType::TDim)
        };
        let are_ends_of_the_run = is_of_the_run(1)? || is_of_the_run(2)?;
        if !(has_steps || are_ends_of_the_run) || known.iter().all(Option::is_some) {
            let mut inputs: TVec<OutletId> = inputs.into();
            let fact = model.outlet_fact(inputs[0])?;
            // tract takes places by steps before an operator rather than after it, also before those
            // that compute of all places (Softmax). Sizes are computed while planning, not by a run.
            if has_steps && fact.konst.is_none() && fact.datum_type != DatumType::TDim {
                let name = format!("{prefix}.barrier");
                inputs[0] = model.wire_node(name, Barrier, &inputs[..1])?[0];
            }
            return model.wire_node(prefix, self.inner.clone(), &inputs);
        }
        let axes = at(self.inner.optional_axes_input).map(integers_of).transpose()?;
        let slice = SliceOfTheRun {
            axes_input: self.inner.optional_axes_input,
            steps_input: self.inner.optional_steps_input,
            axes,
            sizes: self.sizes.clone(),
        };
        model.wire_node(prefix, typed(slice), inputs)
    }
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
    let size = i64::try_from(size)?;
    let from_start = |place: i64| if place < 0 { place.saturating_add(size) } else { place };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let start = from_start(start).clamp(low.max(0).min(high), high);
    let end = from_start(end).clamp(low, high);
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
        let mut output = input.clone().into_tensor();
        for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
            let axis = checked_axis(axis, output.rank())?;
            let places = taken(output.shape()[axis], [start, end, step])?;
            output = dispatch_datum!(take(output.datum_type())(&output, axis, &places))?;
        }
        Ok(tvec![output])
    }
}
