//! Range. tract's wants scalars, where ONNX Runtime takes lists of one, too, as ONNX's own functions give;
//! and it counts by the distance alone where the ends are sizes.

use std::borrow::Cow;

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::Range as TractRange;

use super::kernel::{Form, Kernel, checked_len, only, typed};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Range", |_, _| Ok((expand(Range), Vec::new())));
}

#[derive(Debug, Clone)]
struct Range;

impl Expansion for Range {
    fn name(&self) -> StaticName {
        "Range".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 3)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].rank, 1)?;
        let [a, b, c] = [&inputs[0], &inputs[1], &inputs[2]];
        solver.given_3(&a.datum_type, &b.datum_type, &c.datum_type, move |solver, a, b, c| {
            let datum = DatumType::super_type_for([a, b, c]).context("of different types")?;
            let is_size = datum == DatumType::TDim;
            solver.equals(&outputs[0].datum_type, if is_size { DatumType::I64 } else { datum })
        })?;
        solver.given_3(&a.value, &b.value, &c.value, move |solver, from, end, by| {
            match length(&from, &end, &by)? {
                Some(length) => solver.equals(&outputs[0].shape[0], length),
                None => Ok(()),
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
        for (index, input) in inputs.iter_mut().enumerate() {
            let fact = model.outlet_fact(*input)?.clone();
            let count = fact.shape.volume();
            ensure!(count.as_i64() == Some(1), "{count} elements, expected one");
            if let Some(value) = &fact.konst {
                // Sizes that are numbers are counted as numbers.
                let is_size = value.datum_type() == DatumType::TDim;
                let number = is_size.then(|| value.cast_to::<i64>().ok()).flatten();
                let number = number.map_or_else(|| (**value).clone(), Cow::into_owned);
                let name = format!("{prefix}.number_{index}");
                *input = model.add_const(name, number.into_shape(&[])?)?;
                continue;
            }
            for axis in (0..fact.rank()).rev() {
                let name = format!("{prefix}.scalar_{index}_{axis}");
                *input = model.wire_node(name, AxisOp::Rm(axis), &[*input])?[0];
            }
        }
        let (mut are_known, mut has_sizes) = (true, false);
        for &input in &inputs {
            let fact = model.outlet_fact(input)?;
            are_known &= fact.konst.is_some();
            has_sizes |= fact.datum_type == DatumType::TDim;
        }
        // Sizes are bounded by what they are the sizes of.
        if !are_known && !has_sizes {
            inputs[1] = model.wire_node(format!("{prefix}.bounded"), typed(Bounded), &inputs)?[0];
        }
        TractRange.wire(prefix, model, &inputs)
    }
}

/// Gives the end of a Range that is not too long.
#[derive(Debug)]
struct Bounded;

impl Kernel for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [_, end, _] = inputs else { bail!("expected three inputs, got {}", inputs.len()) };
        Ok(tvec![Form::new(end.datum, end.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [from, end, by] = inputs else { bail!("expected three, got {}", inputs.len()) };
        length(from, end, by)?;
        Ok(tvec![(**end).clone()])
    }
}

/// How many there are, as far as that is known.
fn length(from: &Tensor, end: &Tensor, by: &Tensor) -> TractResult<Option<TDim>> {
    if [from, end, by].iter().any(|tensor| tensor.datum_type().is_float()) {
        let [from, end, by] = [only::<f64>(from)?, only::<f64>(end)?, only::<f64>(by)?];
        let length = ((end - from) / by).ceil();
        // Also what is no number. What is larger is refused.
        let length = if length > 0.0 { length as usize } else { 0 };
        return Ok(Some(checked_len(&[length])?.to_dim()));
    }
    if let (Ok(from), Ok(end), Ok(by)) = (only::<i64>(from), only::<i64>(end), only::<i64>(by)) {
        ensure!(by != 0, "a step of zero");
        let (distance, by) = (i128::from(end) - i128::from(from), i128::from(by));
        let length = (distance + by - by.signum()) / by;
        let length = usize::try_from(length.max(0))?;
        return Ok(Some(checked_len(&[length])?.to_dim()));
    }
    // Sizes that are free.
    let size = |tensor: &Tensor| {
        ensure!(tensor.len() == 1, "{} elements, expected one", tensor.len());
        let sizes = tensor.cast_to::<TDim>()?;
        Ok(sizes.try_as_plain_ram()?.as_slice::<TDim>()?[0].clone())
    };
    let (from, end) = (size(from)?, size(end)?);
    Ok(match only::<i64>(by) {
        Ok(by) if by > 0 => Some((end - from).divceil(usize::try_from(by)?)),
        _ => None,
    })
}
