//! LinearClassifier and LinearRegressor.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::{Labels, floats};
use super::kernel::{Built, Form, Kernel, NUMBERS, built, expect_datum, one, rows_and_columns};
use super::scores::{PostTransform, largest_index, pair_of};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("LinearClassifier", classifier);
    operators.insert("LinearRegressor", regressor);
}

/// Each output is a weighted sum of a row's features and an intercept.
#[derive(Debug)]
struct Linear {
    /// One row of features for each output.
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    features: usize,
    transform: PostTransform,
    labels: Option<Labels>,
}

fn linear(node: &NodeProto, outputs: usize, labels: Option<Labels>) -> TractResult<Linear> {
    let coefficients = floats(node, "coefficients")?.to_vec();
    let count = coefficients.len();
    ensure!(outputs > 0 && count > 0, "{count} coefficients for {outputs} outputs");
    ensure!(count.is_multiple_of(outputs), "{count} coefficients for {outputs} outputs");
    let mut intercepts = floats(node, "intercepts")?.to_vec();
    if intercepts.is_empty() {
        intercepts = vec![0.0; outputs];
    }
    let came = intercepts.len();
    ensure!(came == outputs, "{came} intercepts for {outputs} outputs");
    let transform = node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE");
    let transform = PostTransform::parse(transform)?;
    Ok(Linear { coefficients, intercepts, features: count / outputs, transform, labels })
}

fn classifier(_context: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "classlabels_ints")?;
    let outputs = match floats(node, "intercepts")?.len() {
        0 => labels.len(),
        intercepts => intercepts,
    };
    let (count, fits) = (labels.len(), outputs == labels.len() || outputs == 1);
    ensure!(fits, "{count} labels for {outputs} scores");
    let linear = linear(node, outputs, Some(labels))?;
    let no_pair = linear.is_pair() && linear.transform == PostTransform::Probit;
    ensure!(!no_pair, "PROBIT of one score for two classes is not served");
    built(node, linear)
}

fn regressor(_context: &ParsingContext, node: &NodeProto) -> Built {
    let targets = node.get_attr_opt::<i64>("targets")?.unwrap_or(1);
    let targets = usize::try_from(targets).with_context(|| format!("targets {targets}"))?;
    built(node, linear(node, targets, None)?)
}

impl Linear {
    /// One score for two classes.
    fn is_pair(&self) -> bool {
        self.intercepts.len() == 1 && self.labels.as_ref().is_some_and(|labels| labels.len() == 2)
    }

    /// Writes a row's scores and returns its class.
    fn finish(&self, row: &[f32], written: &mut [f32]) -> usize {
        let outputs = self.intercepts.len();
        let coefficients = self.coefficients.chunks_exact(self.features);
        for ((score, coefficients), &intercept) in
            written.iter_mut().zip(coefficients).zip(&self.intercepts)
        {
            *score = dot(row, coefficients) + intercept;
        }
        if outputs == 1 {
            let score = written[0];
            if self.is_pair() {
                written.copy_from_slice(&pair_of(score, self.transform));
            } else if self.transform == PostTransform::Probit {
                self.transform.apply(written);
            }
            return usize::from(score > 0.0);
        }
        let class = largest_index(written);
        self.transform.apply(written);
        class
    }
}

/// In eight sums, which the compiler makes one vector of.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<8>();
    let (right, right_rest) = right.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..8 {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest = left_rest.iter().zip(right_rest).map(|(left, right)| left * right);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        if self.labels.is_some() { "LinearClassifier" } else { "LinearRegressor" }
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &NUMBERS)?;
        let (rows, columns) = rows_and_columns(&input.shape, 1.to_dim())?;
        // One column stands for a free number of them, when a graph is planned for the first time.
        let fits = columns.to_usize().map_or(true, |n| n == self.features || n == 1);
        ensure!(fits, "expected {} features, got {columns}", self.features);
        let scores = if self.is_pair() { 2 } else { self.intercepts.len() };
        let scores = Form::new(DatumType::F32, [rows.clone(), scores.to_dim()]);
        Ok(match &self.labels {
            Some(labels) => tvec![Form::new(labels.datum(), [rows]), scores],
            None => tvec![scores],
        })
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let (rows, columns) = rows_and_columns(input.shape(), 1)?;
        ensure!(columns == self.features, "expected {} features, got {columns}", self.features);
        let input = input.cast_to::<f32>()?;
        let input = input.try_as_plain_ram()?;
        let outputs = if self.is_pair() { 2 } else { self.intercepts.len() };
        let mut scores = Tensor::zero::<f32>(&[rows, outputs])?;
        let mut plain = scores.try_as_plain_ram_mut()?;
        let written = plain.as_slice_mut::<f32>()?.chunks_exact_mut(outputs);
        let rows = input.as_slice::<f32>()?.chunks_exact(columns).zip(written);
        let classes: Vec<usize> = rows.map(|(row, written)| self.finish(row, written)).collect();
        Ok(match &self.labels {
            Some(labels) => tvec![labels.of(&classes), scores],
            None => tvec![scores],
        })
    }
}
