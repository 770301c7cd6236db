//! SVMClassifier and SVMRegressor, as libsvm and ONNX Runtime compute them.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::{Labels, floats, integers};
use super::kernel::{Built, Form, Kernel, NUMBERS, built, expect_datum, one, rows_and_columns};
use super::linear::dot;
use super::scores::{PostTransform, largest_index, logistic, pair_of};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("SVMClassifier", classifier);
    operators.insert("SVMRegressor", regressor);
}

#[derive(Debug, Clone, Copy)]
enum Similarity {
    Linear,
    Polynomial,
    Radial,
    Sigmoid,
}

/// Support vectors, or plain weights where the node has none, and how like a row they are.
#[derive(Debug)]
struct Vectors {
    similarity: Similarity,
    gamma: f32,
    offset: f32,
    degree: f32,
    values: Vec<f32>,
    features: usize,
}

impl Vectors {
    fn read(
        node: &NodeProto,
        values: &[f32],
        count: usize,
        are_weights: bool,
    ) -> TractResult<Self> {
        let length = values.len();
        let fits = count > 0 && length > 0 && length.is_multiple_of(count);
        ensure!(fits, "{length} values for {count} support vectors");
        let similarity = match node.get_attr_opt::<&str>("kernel_type")?.unwrap_or("LINEAR") {
            _ if are_weights => Similarity::Linear,
            "LINEAR" => Similarity::Linear,
            "POLY" => Similarity::Polynomial,
            "RBF" => Similarity::Radial,
            "SIGMOID" => Similarity::Sigmoid,
            other => bail!("unknown kernel_type {other:?}"),
        };
        let (gamma, offset, degree) = match floats(node, "kernel_params")? {
            [] => (0.0, 0.0, 0.0),
            &[gamma, offset, degree] => (gamma, offset, degree),
            other => bail!("kernel_params has {} elements, expected 3", other.len()),
        };
        let (values, features) = (values.to_vec(), length / count);
        Ok(Self { similarity, gamma, offset, degree, values, features })
    }

    fn compare(&self, row: &[f32], similarities: &mut Vec<f32>) {
        similarities.clear();
        similarities.extend(self.values.chunks_exact(self.features).map(|vector| {
            let product = || self.gamma * dot(row, vector) + self.offset;
            match self.similarity {
                Similarity::Linear => dot(row, vector),
                Similarity::Polynomial => product().powf(self.degree),
                Similarity::Sigmoid => product().tanh(),
                Similarity::Radial => {
                    let squares = row.iter().zip(vector).map(|(a, b)| (a - b) * (a - b));
                    (-self.gamma * squares.sum::<f32>()).exp()
                }
            }
        }));
    }

    fn rows(&self, input: &Form) -> TractResult<TDim> {
        expect_datum(input, &NUMBERS)?;
        let (rows, columns) = rows_and_columns(&input.shape, 1.to_dim())?;
        // One column stands for a free number of them, when a graph is planned for the first time.
        let fits = columns.to_usize().map_or(true, |n| n == self.features || n == 1);
        ensure!(fits, "expected {} features, got {columns}", self.features);
        Ok(rows)
    }

    /// Calls with each row's similarities, and an output's row of `width`.
    fn each_row(
        &self,
        input: &Tensor,
        width: usize,
        mut each: impl FnMut(&[f32], &mut [f32]),
    ) -> TractResult<Tensor> {
        let (rows, columns) = rows_and_columns(input.shape(), 1)?;
        ensure!(columns == self.features, "expected {} features, got {columns}", self.features);
        let input = input.cast_to::<f32>()?;
        let input = input.try_as_plain_ram()?;
        let mut output = Tensor::zero::<f32>(&[rows, width])?;
        let mut plain = output.try_as_plain_ram_mut()?;
        let written = plain.as_slice_mut::<f32>()?.chunks_exact_mut(width);
        let mut similarities = Vec::new();
        for (row, written) in input.as_slice::<f32>()?.chunks_exact(columns).zip(written) {
            self.compare(row, &mut similarities);
            each(&similarities, written);
        }
        Ok(output)
    }
}

#[derive(Debug)]
struct Regressor {
    vectors: Vectors,
    /// One for each support vector; empty where the vectors are the weights.
    coefficients: Vec<f32>,
    rho: f32,
    is_one_class: bool,
}

fn regressor(_context: &ParsingContext, node: &NodeProto) -> Built {
    let supports = node.get_attr_opt::<i64>("n_supports")?.unwrap_or(0);
    let supports = usize::try_from(supports).with_context(|| format!("n_supports {supports}"))?;
    let coefficients = floats(node, "coefficients")?;
    let rho = *floats(node, "rho")?.first().context("no rho")?;
    let is_one_class = node.get_attr_opt::<i64>("one_class")?.unwrap_or(0) != 0;
    let (vectors, coefficients) = if supports == 0 {
        (Vectors::read(node, coefficients, 1, true)?, Vec::new())
    } else {
        let count = coefficients.len();
        ensure!(count == supports, "{count} coefficients for {supports} support vectors");
        let values = floats(node, "support_vectors")?;
        (Vectors::read(node, values, supports, false)?, coefficients.to_vec())
    };
    built(node, Regressor { vectors, coefficients, rho, is_one_class })
}

impl Kernel for Regressor {
    fn name(&self) -> &'static str {
        "SVMRegressor"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let rows = self.vectors.rows(one(inputs)?)?;
        Ok(tvec![Form::new(DatumType::F32, [rows, 1.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let output = self.vectors.each_row(one(inputs)?, 1, |similarities, written| {
            let sum = match self.coefficients.is_empty() {
                true => similarities[0],
                false => dot(similarities, &self.coefficients),
            };
            written[0] = match (sum + self.rho, self.is_one_class) {
                (score, false) => score,
                (score, true) => {
                    if score > 0.0 {
                        1.0
                    } else {
                        -1.0
                    }
                }
            };
        })?;
        Ok(tvec![output])
    }
}

#[derive(Debug)]
struct Classifier {
    vectors: Vectors,
    labels: Labels,
    transform: PostTransform,
    rho: Vec<f32>,
    all_positive: bool,
    /// None where the vectors are the classes' weights.
    machines: Option<Machines>,
}

/// One machine for each pair of classes.
#[derive(Debug)]
struct Machines {
    /// Where each class's support vectors start, and the end.
    starts: Vec<usize>,
    /// A row of all vectors' for each class but one.
    coefficients: Vec<f32>,
    /// Platt's a and b for each machine; empty where no probabilities are asked for.
    platt: Vec<(f32, f32)>,
}

/// Bounds what pairs of classes may take.
const MOST_CLASSES: usize = 4096;

fn classifier(_context: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "classlabels_ints")?;
    let classes = labels.len();
    ensure!((2..=MOST_CLASSES).contains(&classes), "{classes} classes");
    let coefficients = floats(node, "coefficients")?;
    let rho = floats(node, "rho")?.to_vec();
    let transform = node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE");
    let transform = PostTransform::parse(transform)?;
    let per_class = integers(node, "vectors_per_class")?;
    let mut starts = vec![0usize];
    for &count in per_class {
        let count =
            usize::try_from(count).with_context(|| format!("{count} vectors of a class"))?;
        let end = starts.last().and_then(|start| start.checked_add(count));
        starts.push(end.filter(|&end| end < 1 << 31).context("too many support vectors")?);
    }
    let supports = starts.last().copied().unwrap_or(0);
    let all_positive = coefficients.iter().all(|&value| value >= 0.0);
    let (vectors, machines) = if supports == 0 {
        ensure!(!rho.is_empty(), "no rho");
        (Vectors::read(node, coefficients, classes, true)?, None)
    } else {
        let pairs = classes * (classes - 1) / 2;
        let counts = (per_class.len(), coefficients.len(), rho.len());
        let wanted = (classes, (classes - 1) * supports, pairs);
        ensure!(
            counts == wanted,
            "vectors_per_class, coefficients and rho have {counts:?} elements, expected {wanted:?}"
        );
        let (a, b) = (floats(node, "prob_a")?, floats(node, "prob_b")?);
        let fits = a.len() == b.len() && (a.is_empty() || a.len() == pairs);
        ensure!(fits, "prob_a and prob_b have {} and {} elements", a.len(), b.len());
        let platt = a.iter().copied().zip(b.iter().copied()).collect();
        let coefficients = coefficients.to_vec();
        let vectors = Vectors::read(node, floats(node, "support_vectors")?, supports, false)?;
        (vectors, Some(Machines { starts, coefficients, platt }))
    };
    built(node, Classifier { vectors, labels, transform, rho, all_positive, machines })
}

impl Machines {
    /// The decision of each pair's machine; above zero for the first of the pair.
    fn decide(&self, similarities: &[f32], rho: &[f32]) -> Vec<f32> {
        let supports = similarities.len();
        let classes = self.starts.len() - 1;
        let weigh = |class: usize, row: usize| -> f64 {
            let span = self.starts[class]..self.starts[class + 1];
            let coefficients = &self.coefficients[row * supports..][span.clone()];
            let pairs = coefficients.iter().zip(&similarities[span]);
            pairs.map(|(coefficient, similarity)| f64::from(coefficient * similarity)).sum()
        };
        let pairs = pairs(classes).zip(rho);
        pairs
            .map(|((i, j), &rho)| (weigh(i, j - 1) + weigh(j, i) + f64::from(rho)) as f32)
            .collect()
    }

    fn votes(&self, decisions: &[f32]) -> usize {
        let classes = self.starts.len() - 1;
        let mut votes = vec![0.0f32; classes];
        for ((i, j), &decision) in pairs(classes).zip(decisions) {
            votes[if decision > 0.0 { i } else { j }] += 1.0;
        }
        largest_index(&votes)
    }

    /// Classes' probabilities from pairs', by the second method of Wu, Lin and Weng (2004), as
    /// libsvm has it.
    fn probabilities(&self, decisions: &[f32], p: &mut [f32]) {
        let classes = p.len();
        let mut r = vec![0.0f32; classes * classes];
        for (((i, j), &decision), &(a, b)) in pairs(classes).zip(decisions).zip(&self.platt) {
            let first = (1.0 - logistic(decision * a + b)).clamp(1e-7, 1.0 - 1e-7);
            r[i * classes + j] = first;
            r[j * classes + i] = 1.0 - first;
        }
        let mut q = vec![0.0f32; classes * classes];
        for i in 0..classes {
            for j in (0..classes).filter(|&j| j != i) {
                let other = r[j * classes + i];
                q[i * classes + i] += other * other;
                q[i * classes + j] = -other * r[i * classes + j];
            }
        }
        p.fill(1.0 / classes as f32);
        let mut qp = vec![0.0f32; classes];
        for _ in 0..100 {
            for (qp, q) in qp.iter_mut().zip(q.chunks_exact(classes)) {
                *qp = q.iter().zip(&*p).map(|(q, p)| q * p).sum();
            }
            let mut pqp: f32 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
            let error = qp.iter().map(|qp| (qp - pqp).abs()).fold(0.0, f32::max);
            if error < 0.005 / classes as f32 {
                break;
            }
            for i in 0..classes {
                let own = q[i * classes + i];
                let change = (pqp - qp[i]) / own;
                p[i] += change;
                let scale = 1.0 + change;
                pqp = (pqp + change * (change * own + 2.0 * qp[i])) / scale / scale;
                for j in 0..classes {
                    qp[j] = (qp[j] + change * q[i * classes + j]) / scale;
                    p[j] /= scale;
                }
            }
        }
    }
}

/// Pairs of classes in the order of their machines.
fn pairs(classes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..classes).flat_map(move |i| (i + 1..classes).map(move |j| (i, j)))
}

impl Classifier {
    fn width(&self) -> usize {
        let classes = self.labels.len();
        match &self.machines {
            Some(machines) if machines.platt.is_empty() && classes > 2 => {
                classes * (classes - 1) / 2
            }
            _ => classes,
        }
    }

    /// Writes a row's scores and returns its class.
    fn finish(&self, similarities: &[f32], written: &mut [f32]) -> usize {
        let Some(machines) = &self.machines else {
            for (score, &similarity) in written.iter_mut().zip(similarities) {
                *score = similarity + self.rho[0];
            }
            let class = largest_index(written);
            let threshold = written[class];
            let is_second = match self.all_positive {
                true => threshold >= 0.5,
                false => threshold > 0.0,
            };
            self.transform.apply(written);
            return if written.len() == 2 && is_second { 1 } else { class };
        };
        let decisions = machines.decide(similarities, &self.rho);
        if !machines.platt.is_empty() {
            machines.probabilities(&decisions, written);
            self.transform.apply(written);
        } else if let [score] = decisions[..] {
            written.copy_from_slice(&match self.transform {
                PostTransform::None => [-score, score],
                transform => pair_of(score, transform),
            });
        } else {
            written.copy_from_slice(&decisions);
            self.transform.apply(written);
        }
        machines.votes(&decisions)
    }
}

impl Kernel for Classifier {
    fn name(&self) -> &'static str {
        "SVMClassifier"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let rows = self.vectors.rows(one(inputs)?)?;
        Ok(tvec![
            Form::new(self.labels.datum(), [rows.clone()]),
            Form::new(DatumType::F32, [rows, self.width().to_dim()]),
        ])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let mut classes = Vec::new();
        let scores =
            self.vectors.each_row(one(inputs)?, self.width(), |similarities, written| {
                classes.push(self.finish(similarities, written));
            })?;
        Ok(tvec![self.labels.of(&classes), scores])
    }
}
