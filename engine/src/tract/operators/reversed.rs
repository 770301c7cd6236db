//! ReverseSequence: each sequence of a batch turned around, up to its own length.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_axis, expect_shape, sizes_of};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("ReverseSequence", reverse_sequence);
}

fn reverse_sequence(_context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = |name: &str, otherwise: i64| {
        TractResult::Ok(node.get_attr_opt::<i64>(name)?.unwrap_or(otherwise))
    };
    built(node, ReverseSequence { batch: axis("batch_axis", 1)?, time: axis("time_axis", 0)? })
}

/// By its axes.
#[derive(Debug)]
struct ReverseSequence {
    batch: i64,
    time: i64,
}

impl ReverseSequence {
    fn axes(&self, rank: usize) -> TractResult<(usize, usize)> {
        let (batch, time) = (checked_axis(self.batch, rank)?, checked_axis(self.time, rank)?);
        ensure!(batch != time, "axis {batch} as the batch's and as that of time");
        Ok((batch, time))
    }
}

impl Kernel for ReverseSequence {
    fn name(&self) -> &'static str {
        "ReverseSequence"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, lengths] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let (batch, _) = self.axes(input.shape.len())?;
        expect_shape("sequence_lens", &lengths.shape, &input.shape[batch..=batch])?;
        Ok(tvec![Form::new(input.datum, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn turn<T: Datum>(
            input: &Tensor,
            (batch, time): (usize, usize),
            lengths: &[usize],
        ) -> TractResult<Tensor> {
            let mut output = input.to_plain_array_view::<T>()?.into_owned();
            // Without the batch's.
            let time = tract_ndarray::Axis(time - usize::from(batch < time));
            let sequences = output.axis_iter_mut(tract_ndarray::Axis(batch));
            for (mut sequence, &length) in sequences.zip(lengths) {
                for mut line in sequence.lanes_mut(time) {
                    for place in 0..length / 2 {
                        line.swap(place, length - 1 - place);
                    }
                }
            }
            Ok(output.into_tensor())
        }
        let [input, lengths] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let axes = self.axes(input.rank())?;
        let (lengths, sizes) = (sizes_of(lengths)?, input.shape());
        let (batch, longest) = (sizes[axes.0], sizes[axes.1]);
        ensure!(lengths.len() == batch, "{} lengths for a batch of {batch}", lengths.len());
        let fits = lengths.iter().all(|&length| length <= longest);
        ensure!(fits, "lengths of {lengths:?} for sequences of {longest}");
        Ok(tvec![dispatch_datum!(turn(input.datum_type())(input, axes, &lengths))?])
    }
}
