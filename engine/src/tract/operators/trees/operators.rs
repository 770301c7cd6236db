//! The three operators: their inputs, outputs and what each makes of a row's tally.

use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::super::attributes::{Labels, numbers};
use super::super::kernel::{Built, Form, Kernel, NUMBERS, built, expect_datum, rows_and_columns};
use super::super::scores::{PostTransform, Real, largest_index, logistic, pair_of, probit};
use super::attributes::{read_arrays, read_lists};
use super::ensemble::Ensemble;
use super::forest::{Forest, ROWS_AT_A_TIME};
use super::tally::{Aggregate, Tally};
use crate::once::Once;

pub(in super::super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("TreeEnsembleRegressor", regressor);
    operators.insert("TreeEnsembleClassifier", classifier);
    operators.insert("TreeEnsemble", ensemble);
}

fn regressor(context: &ParsingContext, node: &NodeProto) -> Built {
    let targets = node.get_attr_opt::<i64>("n_targets")?.unwrap_or(1);
    let targets = usize::try_from(targets).with_context(|| format!("n_targets {targets}"))?;
    let (mut ensemble, are_doubles) = read_lists(context, node, "target", targets)?;
    if targets == 1 {
        // ONNX Runtime reads no more of them.
        ensemble.keep_first_weights();
    }
    let aggregate = node.get_attr_opt::<&str>("aggregate_function")?.unwrap_or("SUM");
    let trees = Trees {
        aggregate: Aggregate::parse(aggregate)?,
        ..Trees::new(context, node, ensemble, are_doubles)?
    };
    built(node, trees)
}

fn classifier(context: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "classlabels_int64s")?;
    let classes = labels.len();
    let (ensemble, are_doubles) = read_lists(context, node, "class", classes)?;
    let mut scored = ensemble.weights.iter().map(|weight| weight.output);
    let first = scored.next();
    let classes = Classes {
        labels,
        has_one_column: classes == 2 && first.is_some() && scored.all(|id| Some(id) == first),
        all_positive: ensemble.weights.iter().all(|weight| weight.value >= 0.0),
    };
    let trees = Trees::new(context, node, ensemble, are_doubles)?;
    let bases = trees.base_values.len();
    let outputs = trees.ensemble.outputs;
    let fits = bases <= 1 || bases == outputs;
    ensure!(fits, "base_values has {bases} elements for {outputs} classes");
    built(node, Trees { classes: Some(classes), ..trees })
}

fn ensemble(context: &ParsingContext, node: &NodeProto) -> Built {
    let (ensemble, are_doubles) = read_arrays(context, node)?;
    let named = |name: &str, names: &[&'static str], default: i64| {
        let number = node.get_attr_opt::<i64>(name)?.unwrap_or(default);
        let known = usize::try_from(number).ok().and_then(|number| names.get(number).copied());
        known.with_context(|| format!("unknown {name} {number}"))
    };
    let aggregate = named("aggregate_function", &["AVERAGE", "SUM", "MIN", "MAX"], 1)?;
    let transforms = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"];
    let transform = named("post_transform", &transforms, 0)?;
    let trees = Trees {
        aggregate: Aggregate::parse(aggregate)?,
        transform: PostTransform::parse(transform)?,
        keeps_type: true,
        ..Trees::of(ensemble, are_doubles)
    };
    built(node, trees)
}

/// `None` where it cannot be.
type MadeOnce<T> = Arc<Once<Option<Arc<T>>>>;

/// Any of the three operators.
#[derive(Debug)]
struct Trees {
    ensemble: Ensemble,
    /// The file's numbers are doubles: single precision would change the answers.
    are_doubles: bool,
    aggregate: Aggregate,
    transform: PostTransform,
    base_values: Vec<f64>,
    /// The outputs are of the input's type, not `f32`.
    keeps_type: bool,
    classes: Option<Classes>,
    single: MadeOnce<Forest<f32>>,
    double: MadeOnce<Forest<f64>>,
}

#[derive(Debug)]
struct Classes {
    labels: Labels,
    /// Two classes, and weights for only one of them.
    has_one_column: bool,
    all_positive: bool,
}

impl Trees {
    fn of(ensemble: Ensemble, are_doubles: bool) -> Self {
        Self {
            ensemble,
            are_doubles,
            aggregate: Aggregate::Sum,
            transform: PostTransform::None,
            base_values: Vec::new(),
            keeps_type: false,
            classes: None,
            single: Arc::default(),
            double: Arc::default(),
        }
    }

    fn new(
        context: &ParsingContext,
        node: &NodeProto,
        ensemble: Ensemble,
        are_doubles: bool,
    ) -> TractResult<Self> {
        let transform = node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE");
        let base_values = numbers(context, node, "base_values")?;
        Ok(Self {
            transform: PostTransform::parse(transform)?,
            base_values: base_values.values,
            ..Self::of(ensemble, are_doubles || base_values.are_doubles)
        })
    }

    /// Scores, and each row's class where there are classes.
    fn evaluate<T: Real>(
        &self,
        input: &Tensor,
        forest: &MadeOnce<Forest<T>>,
    ) -> TractResult<(Tensor, Vec<usize>)> {
        let (rows, columns) = rows_and_columns(input.shape(), 1)?;
        let needed = self.ensemble.features.max(1);
        ensure!(columns >= needed, "expected {needed} features or more, got {columns}");
        let input = input.cast_to::<T>()?;
        let input = input.try_as_plain_ram()?;
        let input = input.as_slice::<T>()?;
        let outputs = self.ensemble.outputs;
        let mut scores = Tensor::zero_dt(T::datum_type(), &[rows, outputs])?;
        let mut plain = scores.try_as_plain_ram_mut()?;
        let mut classes = Vec::with_capacity(rows);
        let mut written = plain.as_slice_mut::<T>()?.chunks_exact_mut(outputs);
        let finish = |tally: &mut Tally<T>| {
            let class = self.finish(tally);
            if let Some(written) = written.next() {
                written.copy_from_slice(&tally.scores[..outputs]);
            }
            classes.push(class);
        };
        match self.made(forest) {
            Some(forest) => self.walk_forest(&forest, input, columns, finish),
            None => self.walk_plainly(input, columns, finish),
        }
        Ok((scores, classes))
    }

    fn made<T: Real>(&self, forest: &MadeOnce<Forest<T>>) -> Option<Arc<Forest<T>>> {
        forest.get_or_make(None, || Forest::new(&self.ensemble).map(Arc::new))
    }

    fn walk_forest<T: Real>(
        &self,
        forest: &Forest<T>,
        input: &[T],
        columns: usize,
        mut finish: impl FnMut(&mut Tally<T>),
    ) {
        let trees = self.ensemble.roots.len();
        let rows = (input.len() / columns).min(ROWS_AT_A_TIME);
        let mut found = vec![(0, 0); rows * trees];
        let mut tally = Tally::new(self.ensemble.outputs);
        for rows in input.chunks(columns * ROWS_AT_A_TIME) {
            forest.walk(rows, columns, &mut found);
            for found in found.chunks_exact(trees).take(rows.len() / columns) {
                tally.clear();
                for &leaf in found {
                    tally.take_in(self.aggregate, forest.weights(leaf));
                }
                finish(&mut tally);
            }
        }
    }

    fn walk_plainly<T: Real>(
        &self,
        input: &[T],
        columns: usize,
        mut finish: impl FnMut(&mut Tally<T>),
    ) {
        let mut tally = Tally::new(self.ensemble.outputs);
        for row in input.chunks_exact(columns) {
            tally.clear();
            for &root in &self.ensemble.roots {
                for weight in self.ensemble.leaf(root, |feature| row[feature].to_f64()) {
                    tally.take_in(self.aggregate, &[weight.to()]);
                }
            }
            finish(&mut tally);
        }
    }

    /// Makes a row's scores of its tally, and returns its class, if there are classes.
    fn finish<T: Real>(&self, tally: &mut Tally<T>) -> usize {
        if let Some(classes) = &self.classes {
            return classes.finish(tally, &self.base_values, self.transform);
        }
        if self.aggregate == Aggregate::Average {
            let trees = T::from_f64(self.ensemble.roots.len() as f64);
            tally.scores.iter_mut().for_each(|score| *score = *score / trees);
        }
        tally.add_bases(&self.base_values);
        if tally.scores.len() > 1 {
            // To ONNX Runtime, these are zero, whatever their base values.
            tally.clear_unscored();
        }
        // A lone target is a margin: ONNX Runtime transforms it by PROBIT only.
        if tally.scores.len() > 1 || self.transform == PostTransform::Probit {
            self.transform.apply(&mut tally.scores);
        }
        0
    }
}

impl Classes {
    /// The class, decided before the transform.
    fn finish<T: Real>(
        &self,
        tally: &mut Tally<T>,
        bases: &[f64],
        transform: PostTransform,
    ) -> usize {
        if tally.scores.len() == 2 {
            return self.finish_two(tally, bases, transform);
        }
        tally.add_bases(bases);
        if bases.len() == tally.scores.len() {
            tally.scored.fill(true);
        }
        if let [score] = tally.scores[..] {
            if transform == PostTransform::Probit {
                transform.apply(&mut tally.scores);
            }
            return usize::from(score > T::default());
        }
        let mut best: Option<usize> = None;
        for class in (0..tally.scores.len()).filter(|&class| tally.scored[class]) {
            if best.is_none_or(|best| tally.scores[class] > tally.scores[best]) {
                best = Some(class);
            }
        }
        transform.apply(&mut tally.scores);
        best.unwrap_or(0)
    }

    /// Two classes may share one score: the first class has what the second leaves.
    fn finish_two<T: Real>(
        &self,
        tally: &mut Tally<T>,
        bases: &[f64],
        transform: PostTransform,
    ) -> usize {
        let base = |index: usize| T::from_f64(bases.get(index).copied().unwrap_or_default());
        let [has_first, has_second] = [tally.scored[0], tally.scored[1]];
        let first = tally.scores[0] + base(0);
        if !has_second && bases.len() < 2 {
            let above = if self.is_share() { T::from_f64(0.5) } else { T::default() };
            let pair = match transform {
                PostTransform::Probit => [probit(first), T::default()],
                _ if self.is_share() => pair_of(first, transform),
                PostTransform::Logistic => [logistic(-first), logistic(first)],
                _ => [-first, first],
            };
            tally.scores.copy_from_slice(&pair);
            return usize::from(first > above);
        }
        // ONNX Runtime adds no base value to a class that no leaf speaks of.
        let second = if bases.len() == 2 { tally.scores[1] + base(1) } else { tally.scores[1] };
        tally.scores[0] = if has_first { first } else { T::default() };
        tally.scores[1] = if has_second { second } else { T::default() };
        let class = match (has_first, has_second) {
            // Two columns: the higher score wins, as in ONNX's reference evaluator. ONNX Runtime
            // takes the second class for any second score above zero, and calls it 1.
            (true, true) => largest_index(&tally.scores),
            (_, has_second) => {
                let score = tally.scores[usize::from(has_second)];
                let above = if self.is_share() { T::from_f64(0.5) } else { T::default() };
                usize::from(score > above)
            }
        };
        transform.apply(&mut tally.scores);
        class
    }

    /// The one column is the second class's share of one, not a margin around zero.
    fn is_share(&self) -> bool {
        self.has_one_column && self.all_positive
    }
}

impl Kernel for Trees {
    fn name(&self) -> &'static str {
        match (&self.classes, self.keeps_type) {
            (Some(_), _) => "TreeEnsembleClassifier",
            (None, true) => "TreeEnsemble",
            (None, false) => "TreeEnsembleRegressor",
        }
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input] = inputs else { bail!("expected one input, got {}", inputs.len()) };
        if !(self.keeps_type && input.datum == DatumType::F16) {
            expect_datum(input, &NUMBERS)?;
        }
        let (rows, columns) = rows_and_columns(&input.shape, 1.to_dim())?;
        let needed = self.ensemble.features.max(1);
        // One column stands for a free number of them, when a graph is planned for the first time.
        let enough = columns.to_usize().map_or(true, |columns| columns >= needed || columns == 1);
        ensure!(enough, "expected {needed} features or more, got {columns}");
        // The first request need not wait for what planning can do.
        match input.datum == DatumType::F64 || self.are_doubles {
            true => _ = self.made(&self.double),
            false => _ = self.made(&self.single),
        }
        let datum = if self.keeps_type { input.datum } else { DatumType::F32 };
        let scores = Form::new(datum, [rows.clone(), self.ensemble.outputs.to_dim()]);
        Ok(match &self.classes {
            Some(classes) => tvec![Form::new(classes.labels.datum(), [rows]), scores],
            None => tvec![scores],
        })
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input] = inputs else { bail!("expected one input, got {}", inputs.len()) };
        let (scores, classes) = match input.datum_type() == DatumType::F64 || self.are_doubles {
            true => self.evaluate(input, &self.double)?,
            false => self.evaluate(input, &self.single)?,
        };
        let datum = if self.keeps_type { input.datum_type() } else { DatumType::F32 };
        let scores = match scores.datum_type() == datum {
            true => scores,
            false => scores.cast_to_dt(datum)?.into_owned(),
        };
        Ok(match &self.classes {
            Some(known) => tvec![known.labels.of(&classes), scores],
            None => tvec![scores],
        })
    }
}
