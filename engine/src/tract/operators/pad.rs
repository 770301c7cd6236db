//! Pad. tract's own where pads are known, add something and have all axes; it takes neither negative
//! ones nor those that a run computes, nor values that are lists of one, and fills up with a value where
//! one is given, whatever the mode. Those are ours.

use std::borrow::Cow;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::{Pad as TractPad, PadMode};
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, Unknown, checked_axis, checked_len, checked_strings, integers_of, typed,
    whole,
};
use super::sizes;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Pad", pad);
}

/// What stands beyond a tensor's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

fn pad(context: &ParsingContext, node: &NodeProto) -> Built {
    let mode = match node.get_attr_opt::<&str>("mode")?.unwrap_or("constant") {
        "constant" => Mode::Constant,
        "edge" => Mode::Edge,
        "reflect" => Mode::Reflect,
        "wrap" => Mode::Wrap,
        other => bail!("unknown mode {other:?}"),
    };
    // Inputs that are left out have no place among those that are there.
    let is_given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    let value_input = is_given(2).then_some(2);
    let axes_input = is_given(3).then_some(if is_given(2) { 3 } else { 2 });
    let sizes = Unknown::new(context);
    Ok((expand(Pad { mode, value_input, axes_input, sizes }), Vec::new()))
}

/// Inputs as ONNX has them: the tensor, pads, and maybe a value and axes.
#[derive(Debug, Clone)]
struct Pad {
    mode: Mode,
    value_input: Option<usize>,
    axes_input: Option<usize>,
    sizes: Unknown,
}

/// What is added before and after each axis, or taken away where it is negative.
fn amounts<D: Clone + Default>(
    pads: &[D],
    axes: Option<&[i64]>,
    rank: usize,
) -> TractResult<TVec<[D; 2]>> {
    let axes: TVec<usize> = match axes {
        Some(axes) => axes.iter().map(|&it| checked_axis(it, rank)).collect::<TractResult<_>>()?,
        None => (0..rank).collect(),
    };
    let count = axes.len();
    ensure!(pads.len() == 2 * count, "{} pads for {count} axes", pads.len());
    let mut amounts: TVec<[D; 2]> = (0..rank).map(|_| Default::default()).collect();
    let mut is_padded = tvec![false; rank];
    for (index, axis) in axes.into_iter().enumerate() {
        ensure!(!is_padded[axis], "axis {axis} is padded twice");
        is_padded[axis] = true;
        amounts[axis] = [pads[index].clone(), pads[count + index].clone()];
    }
    Ok(amounts)
}

/// The same of tensors.
fn known_amounts(
    pads: &Tensor,
    axes: Option<&Tensor>,
    rank: usize,
) -> TractResult<TVec<[TDim; 2]>> {
    sizes::check("Pad", pads)?;
    let pads = pads.cast_to::<TDim>()?;
    let axes = axes.map(integers_of).transpose()?;
    amounts(pads.try_as_plain_ram()?.as_slice::<TDim>()?, axes.as_deref(), rank)
}

impl Expansion for Pad {
    fn name(&self) -> StaticName {
        "Pad".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let more = [self.value_input, self.axes_input].iter().flatten().count();
        check_input_arity(inputs, 2 + more)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        solver.equals(&outputs[0].rank, &inputs[0].rank)?;
        solver.equals(&inputs[1].rank, 1)?;
        let sizes = move |solver: &mut Solver<'r>, amounts: TVec<[TDim; 2]>| -> InferenceResult {
            for (axis, [before, after]) in amounts.into_iter().enumerate() {
                let padded = inputs[0].shape[axis].bex() + before + after;
                solver.equals(&outputs[0].shape[axis], padded)?;
            }
            Ok(())
        };
        solver.given_2(&inputs[0].rank, &inputs[1].value, move |solver, rank, pads| {
            let rank = usize::try_from(rank)?;
            let Some(axes) = self.axes_input else {
                return sizes(solver, known_amounts(&pads, None, rank)?);
            };
            solver.given(&inputs[axes].value, move |solver, axes| {
                sizes(solver, known_amounts(&pads, Some(&axes), rank)?)
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
        let pads = konst(1)?;
        let axes = self.axes_input.map(konst).transpose()?;
        let value = self.value_input.map(konst).transpose()?;
        let fact = model.outlet_fact(inputs[0])?.clone();
        let known = match (&pads, &axes) {
            (Some(pads), None) => Some(known_amounts(pads, None, fact.rank())?),
            (Some(pads), Some(Some(axes))) => Some(known_amounts(pads, Some(axes), fact.rank())?),
            _ => None,
        };
        if let Some(amounts) = &known
            && let Some(theirs) = self.theirs(&fact, amounts, value)?
        {
            return model.wire_node(prefix, theirs, &inputs[..1]);
        }
        let mut inputs: TVec<OutletId> = inputs.into();
        for index in [Some(1), self.axes_input].into_iter().flatten() {
            inputs[index] = whole(model, prefix, index, inputs[index])?;
        }
        let padded = known.map(|amounts| {
            let sizes = fact.shape.iter().zip(amounts);
            sizes.map(|(size, [before, after])| size.clone() + before + after).collect()
        });
        let pad = PadOfTheRun { pad: self.clone(), padded };
        model.wire_node(prefix, typed(pad), &inputs)
    }
}

impl Pad {
    /// tract's operator, where it does. `value` is what is known of that input, if there is one.
    fn theirs(
        &self,
        fact: &TypedFact,
        amounts: &[[TDim; 2]],
        value: Option<Option<Arc<Tensor>>>,
    ) -> TractResult<Option<TractPad>> {
        let size = |size: &TDim| usize::try_from(size.as_i64()?).ok();
        let pads = amounts.iter().map(|[before, after]| Some((size(before)?, size(after)?)));
        let Some(pads) = pads.collect::<Option<Vec<(usize, usize)>>>() else { return Ok(None) };
        // tract goes past the end where there is not enough to take from.
        let has = |needed: fn(usize) -> usize| {
            fact.shape.iter().zip(&pads).all(|(dim, &(before, after))| {
                let needed = needed(before.max(after));
                needed == 0 || size(dim).is_some_and(|size| size >= needed)
            })
        };
        let mode = match (self.mode, value) {
            (Mode::Constant, None) => PadMode::default(),
            (Mode::Constant, Some(Some(value))) => {
                PadMode::Constant(scalar(&value)?.into_arc_tensor())
            }
            (Mode::Edge, _) if has(|most| most.min(1)) => PadMode::Edge,
            (Mode::Reflect, _) if has(|most| if most == 0 { 0 } else { most + 1 }) => {
                PadMode::Reflect
            }
            _ => return Ok(None),
        };
        let sizes = fact.shape.iter().zip(&pads);
        let sizes: Option<TVec<usize>> = sizes
            .map(|(dim, &(before, after))| size(dim)?.checked_add(before)?.checked_add(after))
            .collect();
        if let Some(sizes) = sizes {
            checked_len(&sizes)?;
        }
        Ok(fact.datum_type.is_number().then_some(TractPad { pads, mode }))
    }

    /// Where the values of a padded axis come from; `None` where nothing is there to copy.
    fn place(&self, index: i64, size: i64) -> Option<usize> {
        let place = match self.mode {
            _ if (0..size).contains(&index) => index,
            _ if size == 0 => return None,
            Mode::Constant => return None,
            Mode::Edge => index.clamp(0, size - 1),
            Mode::Wrap => index.rem_euclid(size),
            Mode::Reflect => {
                let there_and_back = (2 * (size - 1)).max(1);
                let place = index.rem_euclid(there_and_back);
                place.min(there_and_back - place)
            }
        };
        usize::try_from(place).ok()
    }
}

/// # Errors
/// Not one element.
fn scalar(value: &Tensor) -> TractResult<Tensor> {
    ensure!(value.len() == 1, "a value of {} elements, expected one", value.len());
    value.clone().into_shape(&[])
}

#[derive(Debug)]
struct PadOfTheRun {
    pad: Pad,
    /// The output's shape, where that is known.
    padded: Option<TVec<TDim>>,
}

impl Kernel for PadOfTheRun {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = inputs.first().context("no input")?;
        let shape = self.padded.clone().unwrap_or_else(|| {
            (0..input.shape.len()).map(|axis| self.pad.sizes.dim(axis)).collect()
        });
        let is_there = |size: &TDim| size.as_i64().is_none_or(|size| size >= 0);
        ensure!(shape.iter().all(is_there), "pads take away more than there is");
        Ok(tvec![Form::new(input.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, pads, ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let given = |index: Option<usize>| index.and_then(|index| inputs.get(index));
        let axes = given(self.pad.axes_input).map(|axes| integers_of(axes)).transpose()?;
        let amounts = amounts(&integers_of(pads)?, axes.as_deref(), input.rank())?;
        // What is taken away goes first, so that nothing of it comes back.
        let (mut kept, mut added, mut shape) = (TVec::new(), TVec::new(), TVec::new());
        for (&size, [before, after]) in input.shape().iter().zip(amounts) {
            let less = |amount: i64| usize::try_from(amount.min(0).unsigned_abs());
            let (start, end) = (less(before)?, size.checked_sub(less(after)?));
            let end = end.filter(|&end| start <= end);
            let end = end.context("pads take away more than there is")?;
            let more = [before, after].map(|amount| usize::try_from(amount).unwrap_or(0));
            let padded = (end - start).checked_add(more[0]).and_then(|it| it.checked_add(more[1]));
            shape.push(padded.context("pads are too large")?);
            kept.push(start..end);
            added.push(more[0]);
        }
        // Also where another size is zero.
        let sizes: TVec<usize> = shape.iter().map(|&size| size.max(1)).collect();
        match input.datum_type() {
            DatumType::String => checked_strings(&sizes)?,
            _ => checked_len(&sizes)?,
        };
        let parts = Parts { kept, added, shape };
        let datum = input.datum_type();
        Ok(tvec![if self.pad.mode == Mode::Constant {
            let value = given(self.pad.value_input);
            let value = value.map(|value| scalar(value)?.cast_to_dt(datum).map(Cow::into_owned));
            let value = value.transpose()?;
            dispatch_datum!(filled(datum)(input, &parts, value.as_ref()))?
        } else {
            dispatch_datum!(repeated(datum)(input, &parts, &self.pad))?
        }])
    }
}

/// By axis.
struct Parts {
    /// Of the input.
    kept: TVec<std::ops::Range<usize>>,
    /// Before what is kept.
    added: TVec<usize>,
    /// Of the output.
    shape: TVec<usize>,
}

impl Parts {
    fn kept<'a, T>(
        &self,
        mut view: tract_ndarray::ArrayViewD<'a, T>,
    ) -> tract_ndarray::ArrayViewD<'a, T> {
        for (axis, kept) in self.kept.iter().enumerate() {
            let kept = tract_ndarray::Slice::from(kept.clone());
            view.slice_axis_inplace(tract_ndarray::Axis(axis), kept);
        }
        view
    }
}

fn filled<T: Datum>(input: &Tensor, parts: &Parts, value: Option<&Tensor>) -> TractResult<Tensor> {
    let value = match value {
        Some(value) => value.to_plain_array_view::<T>()?.first().cloned().context("no value")?,
        None => T::default(),
    };
    let from = parts.kept(input.to_plain_array_view::<T>()?);
    let mut output = tract_ndarray::ArrayD::from_elem(&*parts.shape, value);
    let mut to = output.view_mut();
    for (axis, (&start, kept)) in parts.added.iter().zip(&parts.kept).enumerate() {
        let there = tract_ndarray::Slice::from(start..start + kept.len());
        to.slice_axis_inplace(tract_ndarray::Axis(axis), there);
    }
    to.assign(&from);
    Ok(output.into_tensor())
}

fn repeated<T: Datum>(input: &Tensor, parts: &Parts, pad: &Pad) -> TractResult<Tensor> {
    let mut output = parts.kept(input.to_plain_array_view::<T>()?).into_owned();
    for (axis, (&start, &size)) in parts.added.iter().zip(&parts.shape).enumerate() {
        let came = i64::try_from(output.shape()[axis])?;
        if start == 0 && size == output.shape()[axis] {
            continue;
        }
        let start = i64::try_from(start)?;
        let places = (0..size as i64).map(|index| pad.place(index - start, came));
        let places: Option<Vec<usize>> = places.collect();
        let places = places.context("nothing to pad with")?;
        output = output.select(tract_ndarray::Axis(axis), &places);
    }
    Ok(output.into_tensor())
}
