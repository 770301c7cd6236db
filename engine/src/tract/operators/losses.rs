//! NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss, as graphs have them that also say how far
//! off they are.

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum, integers_of};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("NegativeLogLikelihoodLoss", |_, node| {
        loss(node, "NegativeLogLikelihoodLoss", false)
    });
    operators
        .insert("SoftmaxCrossEntropyLoss", |_, node| loss(node, "SoftmaxCrossEntropyLoss", true));
}

/// What scores, of axes `[batch, classes, …]`, lack to one at each place's class. Inputs: scores,
/// classes without that axis, and maybe a weight for each class.
#[derive(Debug)]
struct Loss {
    name: &'static str,
    /// The scores are any numbers, not logarithms of probabilities; those are the second output.
    is_of_scores: bool,
    /// The class of places that do not count.
    ignored: Option<i64>,
    reduction: Reduction,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

fn loss(node: &NodeProto, name: &'static str, is_of_scores: bool) -> Built {
    let reduction = match node.get_attr_opt::<&str>("reduction")?.unwrap_or("mean") {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        other => bail!("unknown reduction {other:?}"),
    };
    let ignored = node.get_attr_opt::<i64>("ignore_index")?;
    built(node, Loss { name, is_of_scores, ignored, reduction })
}

/// Sizes of scores: the batch, the classes, and the places of one of either.
fn sizes(scores: &[usize], classes: &[usize]) -> TractResult<[usize; 3]> {
    let [batch, count, places @ ..] = scores else {
        bail!("scores of rank {}, expected two or more", scores.len());
    };
    let fits = classes.first() == Some(batch) && classes[1..] == *places;
    ensure!(fits, "scores of shape {scores:?} for classes of shape {classes:?}");
    Ok([*batch, *count, checked_len(places)?])
}

/// Takes off each place's logarithm of its classes' sum of exponentials.
fn to_logarithms(scores: &mut [f64], [_, count, places]: [usize; 3]) {
    for scores in scores.chunks_exact_mut((count * places).max(1)) {
        for place in 0..places {
            let of_place = || (0..count).map(|class| class * places + place);
            let largest = of_place().map(|at| scores[at]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = of_place().map(|at| (scores[at] - largest).exp()).sum();
            let logarithm = largest + sum.ln();
            of_place().for_each(|at| scores[at] -= logarithm);
        }
    }
}

impl Kernel for Loss {
    fn name(&self) -> &'static str {
        self.name
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [scores, classes, weights @ ..] = inputs else {
            bail!("expected two inputs or three, got {}", inputs.len());
        };
        expect_datum(scores, &[DatumType::F16, DatumType::F32, DatumType::F64])?;
        expect_datum(classes, &[DatumType::I32, DatumType::I64])?;
        let are_alike = weights.iter().all(|weights| weights.datum == scores.datum);
        ensure!(are_alike, "weights of another type than the scores");
        let (rank, of) = (classes.shape.len(), scores.shape.len());
        ensure!(rank > 0 && rank + 1 == of, "classes of rank {rank} for scores of rank {of}");
        let loss = match self.reduction {
            Reduction::None => Form::new(scores.datum, classes.shape.iter().cloned()),
            _ => Form::new(scores.datum, []),
        };
        let logarithms = Form::new(scores.datum, scores.shape.iter().cloned());
        Ok(if self.is_of_scores { tvec![loss, logarithms] } else { tvec![loss] })
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [scores, classes, weights @ ..] = inputs else {
            bail!("expected two inputs or three, got {}", inputs.len());
        };
        let datum = scores.datum_type();
        let sizes = sizes(scores.shape(), classes.shape())?;
        let [batch, count, places] = sizes;
        let mut logarithms = scores.cast_to::<f64>()?.into_owned();
        if self.is_of_scores {
            to_logarithms(logarithms.try_as_plain_ram_mut()?.as_slice_mut::<f64>()?, sizes);
        }
        let weights = weights.first().map(|weights| weights.cast_to::<f64>()).transpose()?;
        let weights = match &weights {
            Some(weights) => weights.try_as_plain_ram()?.as_slice::<f64>()?.to_vec(),
            None => vec![1.0; count],
        };
        ensure!(weights.len() == count, "{} weights for {count} classes", weights.len());
        let (mut losses, mut weight) = (Vec::with_capacity(batch * places), 0.0);
        {
            let plain = logarithms.try_as_plain_ram()?;
            let numbers = plain.as_slice::<f64>()?;
            for (at, class) in integers_of(classes)?.into_iter().enumerate() {
                if self.ignored == Some(class) {
                    losses.push(0.0);
                    continue;
                }
                let class = usize::try_from(class).ok().filter(|&class| class < count);
                let class = class.context("a class out of range")?;
                let (row, place) = (at / places, at % places);
                losses.push(-numbers[(row * count + class) * places + place] * weights[class]);
                weight += weights[class];
            }
        }
        let sum: f64 = losses.iter().sum();
        let loss = match self.reduction {
            Reduction::None => {
                tract_ndarray::ArrayD::from_shape_vec(classes.shape(), losses)?.into_tensor()
            }
            Reduction::Sum => tensor0(sum),
            Reduction::Mean => tensor0(sum / weight),
        };
        let mut outputs = tvec![loss.cast_to_dt(datum)?.into_owned()];
        if self.is_of_scores {
            outputs.push(logarithms.cast_to_dt(datum)?.into_owned());
        }
        Ok(outputs)
    }
}
