//! LSTMs of constant weights, by a kernel of ours: tract goes through a plan of small operators in each
//! step.

use tract_onnx::tract_hir::internal::*;
use wisp_kernels::{Level, Lstm};

use super::kernel::{Form, Kernel, checked_len, expect_datum};
use crate::tract::bodies::ask;
use crate::tract::team::OfThread;

/// From a sequence of FP32 \[steps, batch, size\], and the states to begin with, to all states of h,
/// \[steps, directions, batch, hidden\], and the last ones of h and c.
#[derive(Debug)]
pub(super) struct Sequence {
    directions: Vec<Lstm>,
    is_reversed: bool,
    /// Whether it is given states of h, and of c.
    has: [bool; 2],
}

impl Sequence {
    /// From weights of inputs and of states, and a bias. The second direction is reversed, or the
    /// first one where it is the only one and `is_reversed`. `None` where they are not FP32.
    ///
    /// # Errors
    /// They do not fit together.
    pub(super) fn new(
        weights: [&Tensor; 2],
        bias: Option<&Tensor>,
        is_reversed: bool,
        has: [bool; 2],
    ) -> TractResult<Option<Self>> {
        let all = weights.into_iter().chain(bias);
        if all.clone().any(|tensor| tensor.datum_type() != DatumType::F32) {
            return Ok(None);
        }
        let ([directions, gates, size], [_, _, hidden]) = (weights[0].shape(), weights[1].shape())
        else {
            bail!("weights of {:?} and {:?}", weights[0].shape(), weights[1].shape());
        };
        let (directions, gates, size, hidden) = (*directions, *gates, *size, *hidden);
        ensure!(matches!(directions, 1 | 2) && gates == 4 * hidden, "weights of {gates} gates");
        ensure!(weights[1].shape() == [directions, gates, hidden], "weights of other gates");
        let bias_fits = bias.is_none_or(|bias| bias.shape() == [directions, 2 * gates]);
        ensure!(bias_fits, "a bias of other gates");
        let plain: TVec<_> = all.map(Tensor::try_as_plain_ram).collect::<TractResult<_>>()?;
        let part = |index: usize, direction: usize, len: usize| -> TractResult<Option<&[f32]>> {
            let Some(plain) = plain.get(index) else { return Ok(None) };
            Ok(Some(&plain.as_slice::<f32>()?[direction * len..][..len]))
        };
        let lstm = |direction| {
            let w = part(0, direction, gates * size)?.unwrap_or_default();
            let r = part(1, direction, gates * hidden)?.unwrap_or_default();
            Ok(Lstm::new([size, hidden], w, r, part(2, direction, 2 * gates)?)?)
        };
        let directions = (0..directions).map(lstm).collect::<TractResult<_>>()?;
        Ok(Some(Self { directions, is_reversed, has }))
    }

    /// As ONNX Runtime's DynamicQuantizeLSTM rounds them.
    pub(super) fn rounding_states(self) -> Self {
        let directions = self.directions.into_iter().map(Lstm::rounding_states);
        Self { directions: directions.collect(), ..self }
    }

    /// Steps, batch and size.
    fn sizes<D: Clone>(x: &[D]) -> TractResult<[D; 3]> {
        let [steps, batch, size] = x else { bail!("a sequence of rank {}", x.len()) };
        Ok([steps.clone(), batch.clone(), size.clone()])
    }

    fn expect_size(&self, size: usize) -> TractResult<()> {
        let expected = self.directions[0].size();
        ensure!(size == expected, "a sequence of {size} values a step, expected {expected}");
        Ok(())
    }

    fn state(given: Option<&TValue>, shape: &[usize]) -> TractResult<Tensor> {
        let Some(given) = given else { return Tensor::zero::<f32>(shape) };
        ensure!(given.shape() == shape, "a state of {:?}, expected {shape:?}", given.shape());
        Ok((**given).clone())
    }
}

impl Kernel for Sequence {
    fn name(&self) -> &'static str {
        "LSTM"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        for input in inputs {
            expect_datum(input, &[DatumType::F32])?;
        }
        let x = inputs.first().context("expected a sequence")?;
        let [steps, batch, size] = Self::sizes(&x.shape)?;
        // One stands for a free size, when a graph is planned for the first time.
        if let Some(size) = size.to_usize().ok().filter(|&size| size != 1) {
            self.expect_size(size)?;
        }
        let directions = self.directions.len().to_dim();
        let hidden = self.directions[0].hidden().to_dim();
        let state = [directions.clone(), batch.clone(), hidden.clone()];
        let all = Form::new(DatumType::F32, [steps, directions, batch, hidden]);
        let last = Form::new(DatumType::F32, state);
        Ok(tvec![all, last.clone(), last])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let x = inputs.first().context("expected a sequence")?;
        let [steps, batch, size] = Self::sizes(x.shape())?;
        self.expect_size(size)?;
        let (directions, hidden) = (self.directions.len(), self.directions[0].hidden());
        let shape = [steps, directions, batch, hidden];
        checked_len(&shape)?;
        // What a step's gates have.
        checked_len(&[batch, 4 * hidden])?;
        let mut given = inputs[1..].iter();
        let mut states = [Tensor::default(), Tensor::default()];
        for (state, has) in states.iter_mut().zip(self.has) {
            let given = if has { given.next() } else { None };
            *state = Self::state(given, &shape[1..])?;
        }
        let [mut h, mut c] = states;
        let mut y = Tensor::zero::<f32>(&shape)?;
        {
            let x = x.try_as_plain_ram()?;
            let mut plain = [&mut y, &mut h, &mut c].map(Tensor::try_as_plain_ram_mut);
            let [Ok(y), Ok(h), Ok(c)] = &mut plain else { bail!("a tensor elsewhere") };
            let (y, h, c) = (y.as_slice_mut()?, h.as_slice_mut()?, c.as_slice_mut()?);
            let row = batch * hidden;
            for (index, direction) in self.directions.iter().enumerate() {
                let mut asked = Ok(());
                let mut each = |step: usize, h: &[f32]| {
                    y[(step * directions + index) * row..][..row].copy_from_slice(h);
                    asked = ask();
                    asked.is_ok()
                };
                let is_reversed = index == 1 || self.is_reversed;
                let sequence = ([steps, batch], x.as_slice()?, is_reversed);
                let state = (&mut h[index * row..][..row], &mut c[index * row..][..row]);
                direction.run(Level::best(), sequence, state, &mut each, &OfThread)?;
                asked?;
            }
        }
        Ok(tvec![y, h, c])
    }
}
