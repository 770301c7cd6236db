//! NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss, as graphs have them that also say how far
//! off they are.

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum};

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
    /// The scores are any numbers, not logarithms of probabilities.
    is_of_scores: bool,
    /// Those logarithms are the second output, which somebody asked for.
    is_shown: bool,
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
    let is_shown = is_of_scores && node.output.get(1).is_some_and(|name| !name.is_empty());
    built(node, Loss { name, is_of_scores, is_shown, ignored, reduction })
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
        Ok(if self.is_shown { tvec![loss, logarithms] } else { tvec![loss] })
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        match inputs.first().context("no scores")?.datum_type() {
            DatumType::F16 => self.run_of(inputs, f16::from_f64),
            DatumType::F32 => self.run_of(inputs, |number| number as f32),
            _ => self.run_of(inputs, |number: f64| number),
        }
    }
}

/// The scores as they are given, and how they lie.
struct Scores<'a, T> {
    values: &'a [T],
    /// Classes, and places of each.
    sizes: [usize; 2],
    /// They are any numbers, not logarithms of probabilities.
    is_of_scores: bool,
}

impl<T: Copy + Into<f64>> Scores<'_, T> {
    /// At a place of all, of the batch's first row first.
    fn at(&self, place: usize, class: usize) -> f64 {
        let [count, places] = self.sizes;
        self.values[(place / places * count + class) * places + place % places].into()
    }

    /// What a place's scores have more than logarithms of probabilities: the logarithm of the sum
    /// of their exponentials.
    fn surplus(&self, place: usize) -> f64 {
        if !self.is_of_scores {
            return 0.0;
        }
        let of_place = || (0..self.sizes[0]).map(|class| self.at(place, class));
        let largest = of_place().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = of_place().map(|score| (score - largest).exp()).sum();
        largest + sum.ln()
    }
}

impl Loss {
    /// Place by place, in doubles; `narrow` makes them what the scores are.
    fn run_of<T: Datum + Copy + Into<f64>>(
        &self,
        inputs: &[TValue],
        narrow: impl Fn(f64) -> T,
    ) -> TractResult<TVec<Tensor>> {
        let [scores, classes, weights @ ..] = inputs else {
            bail!("expected two inputs or three, got {}", inputs.len());
        };
        let [batch, count, places] = sizes(scores.shape(), classes.shape())?;
        let weights = weights.first().map(|weights| weights.try_as_plain_ram()).transpose()?;
        let weights = weights.as_ref().map(|weights| weights.as_slice::<T>()).transpose()?;
        let came = weights.map_or(count, <[T]>::len);
        ensure!(came == count, "{came} weights for {count} classes");
        let plain = scores.try_as_plain_ram()?;
        let values = plain.as_slice::<T>()?;
        let of = Scores { values, sizes: [count, places], is_of_scores: self.is_of_scores };
        let mut logarithms = if self.is_shown { values.to_vec() } else { Vec::new() };
        let is_each = self.reduction == Reduction::None;
        let mut losses = Vec::with_capacity(if is_each { batch * places } else { 0 });
        let (mut sum, mut weight) = (0.0, 0.0);
        for (place, class) in each(classes)?.enumerate() {
            let surplus = of.surplus(place);
            if self.is_shown {
                let (row, at) = (place / places, place % places);
                let shown = logarithms[row * count * places..][..count * places].iter_mut();
                for score in shown.skip(at).step_by(places) {
                    let wide: f64 = (*score).into();
                    *score = narrow(wide - surplus);
                }
            }
            let mut loss = 0.0;
            if self.ignored != Some(class) {
                let class = usize::try_from(class).ok().filter(|&class| class < count);
                let class = class.context("a class out of range")?;
                let of_class: f64 = weights.map_or(1.0, |weights| weights[class].into());
                loss = -(of.at(place, class) - surplus) * of_class;
                weight += of_class;
            }
            sum += loss;
            if is_each {
                losses.push(narrow(loss));
            }
        }
        let array = |shape: &[usize], values: Vec<T>| -> TractResult<Tensor> {
            Ok(tract_ndarray::ArrayD::from_shape_vec(shape, values)?.into_tensor())
        };
        let mut outputs = tvec![match self.reduction {
            Reduction::None => array(classes.shape(), losses)?,
            Reduction::Sum => tensor0(narrow(sum)),
            Reduction::Mean => tensor0(narrow(sum / weight)),
        }];
        if self.is_shown {
            outputs.push(array(scores.shape(), logarithms)?);
        }
        Ok(outputs)
    }
}

/// Classes, of either type.
fn each(classes: &Tensor) -> TractResult<Box<dyn Iterator<Item = i64> + '_>> {
    if classes.datum_type() == DatumType::I32 {
        let classes = classes.to_plain_array_view::<i32>()?;
        return Ok(Box::new(classes.into_iter().map(|&class| class.into())));
    }
    Ok(Box::new(classes.to_plain_array_view::<i64>()?.into_iter().copied()))
}
