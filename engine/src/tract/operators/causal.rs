//! CausalConvWithState: each channel by a kernel of its own, over what came before, as Mamba and Gated
//! DeltaNet have it.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{
    Built, Form, Kernel, built, checked_len, expect_datum, expect_shape, forms_of, singles,
};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("CausalConvWithState", causal_convolution);
}

/// Of \[batch, channels, length\] and kernels \[channels, 1, width\]; maybe a bias, and the places before
/// the first, which are zero otherwise. Gives the last places, too, which go before those that follow.
#[derive(Debug)]
struct CausalConvolution {
    has_bias: bool,
    has_past: bool,
    is_silu: bool,
}

fn causal_convolution(_context: &ParsingContext, node: &NodeProto) -> Built {
    let given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    ensure!(given(0) && given(1), "the input or the weights are not given");
    let is_silu = match node.get_attr_opt::<&str>("activation")?.unwrap_or("none") {
        "none" => false,
        "silu" | "swish" => true,
        other => bail!("unknown activation {other:?}"),
    };
    built(node, CausalConvolution { has_bias: given(2), has_past: given(3), is_silu })
}

/// What a node takes, by what it is.
struct Taken<'a, T> {
    x: &'a T,
    weights: &'a T,
    bias: Option<&'a T>,
    past: Option<&'a T>,
}

impl CausalConvolution {
    fn taken<'a, T>(&self, inputs: &'a [T]) -> TractResult<Taken<'a, T>> {
        let [x, weights, rest @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let mut rest = rest.iter();
        let mut next = |is_given: bool| if is_given { rest.next() } else { None };
        let (bias, past) = (next(self.has_bias), next(self.has_past));
        let are_all = (bias.is_some(), past.is_some()) == (self.has_bias, self.has_past);
        ensure!(are_all && rest.next().is_none(), "got {} inputs", inputs.len());
        Ok(Taken { x, weights, bias, past })
    }
}

impl Kernel for CausalConvolution {
    fn name(&self) -> &'static str {
        "CausalConvWithState"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        inputs.iter().try_for_each(|input| expect_datum(input, &[DatumType::F32]))?;
        let Taken { x, weights, bias, past } = self.taken(inputs)?;
        let ([batch, channels, _], [_, _, width]) = (&*x.shape, &*weights.shape) else {
            bail!(
                "an input of rank {} and weights of rank {}, expected 3 and 3",
                x.shape.len(),
                weights.shape.len()
            );
        };
        ensure!(*width != 0.to_dim(), "weights of no width");
        let state = [batch.clone(), channels.clone(), width.clone() - 1];
        expect_shape("weights", &weights.shape, &[channels.clone(), 1.to_dim(), width.clone()])?;
        if let Some(bias) = bias {
            expect_shape("a bias", &bias.shape, std::slice::from_ref(channels))?;
        }
        if let Some(past) = past {
            expect_shape("a state", &past.shape, &state)?;
        }
        Ok(tvec![Form::new(x.datum, x.shape.iter().cloned()), Form::new(x.datum, state)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        self.outputs(&forms_of(inputs))?;
        let Taken { x, weights, bias, past } = self.taken(inputs)?;
        let (&[batch, channels, length], &[_, _, width]) = (x.shape(), weights.shape()) else {
            bail!("an input of {:?} and weights of {:?}", x.shape(), weights.shape());
        };
        let before = width - 1;
        let (bias, past) = (singles(bias)?, singles(past)?);
        let (x, weights) = (singles(Some(x))?, singles(Some(weights))?);
        checked_len(&[batch, channels, length.max(before)])?;
        let mut output = Tensor::zero::<f32>(&[batch, channels, length])?;
        let mut present = Tensor::zero::<f32>(&[batch, channels, before])?;
        if output.len() == 0 && present.len() == 0 {
            return Ok(tvec![output, present]);
        }
        let (mut y, mut last) = (output.try_as_plain_ram_mut()?, present.try_as_plain_ram_mut()?);
        let (y, last) = (y.as_slice_mut::<f32>()?, last.as_slice_mut::<f32>()?);
        // The line's first places are zero, or what came before.
        let mut line = vec![0.0; before + length];
        for row in 0..batch * channels {
            let channel = row % channels;
            if self.has_past {
                line[..before].copy_from_slice(&past[row * before..][..before]);
            }
            line[before..].copy_from_slice(&x[row * length..][..length]);
            let y = &mut y[row * length..][..length];
            y.fill(bias.get(channel).copied().unwrap_or(0.0));
            for (place, weight) in weights[channel * width..][..width].iter().enumerate() {
                for (y, x) in y.iter_mut().zip(&line[place..]) {
                    *y += weight * x;
                }
            }
            if self.is_silu {
                y.iter_mut().for_each(|y| *y /= 1.0 + (-*y).exp());
            }
            last[row * before..][..before].copy_from_slice(&line[length..]);
        }
        Ok(tvec![output, present])
    }
}
