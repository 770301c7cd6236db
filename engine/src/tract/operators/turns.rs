//! What a Loop or a Scan is once it is planned: a body that is run turn by turn.

use std::vec::IntoIter;

use tract_onnx::prelude::TypedRunnableModel;
use tract_onnx::tract_hir::internal::*;

use super::super::bodies;
use super::kernel::{checked_axis, checked_len, only};

/// What a body takes from a tensor in each turn, or adds to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Counted as ONNX does.
    pub(super) axis: i64,
    pub(super) is_reversed: bool,
}

impl Sequence {
    /// A Loop's, and a Scan's where it says no more.
    pub(super) const FIRST: Self = Self { axis: 0, is_reversed: false };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whether the node says how often at most, and whether at all.
    Loop { has_count: bool, has_condition: bool },
    /// Whether the first axis of all is a batch's, each row of which is scanned by itself.
    Scan { is_batched: bool },
}

/// What the inputs and outputs of a node and of its body are. States come before sequences, and what
/// is taken from around the body after both.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    pub(super) kind: Kind,
    pub(super) states: usize,
    pub(super) sequences: Vec<Sequence>,
    pub(super) collected: Vec<Sequence>,
}

impl Turns {
    /// Which of the node's inputs the first state is.
    pub(super) fn first_outside(&self) -> usize {
        match self.kind {
            Kind::Loop { has_count, has_condition } => {
                usize::from(has_count) + usize::from(has_condition)
            }
            Kind::Scan { .. } => 0,
        }
    }

    /// Which of the body's inputs the first state is: a Loop's come after the turn and the condition.
    pub(super) fn first_inside(&self) -> usize {
        if self.is_loop() { 2 } else { 0 }
    }

    /// Which of the body's outputs the first state is.
    pub(super) fn first_given(&self) -> usize {
        usize::from(self.is_loop())
    }

    pub(super) fn is_loop(&self) -> bool {
        matches!(self.kind, Kind::Loop { .. })
    }

    pub(super) fn is_batched(&self) -> bool {
        self.kind == Kind::Scan { is_batched: true }
    }

    /// The node's inputs but for what is taken from around.
    pub(super) fn outside(&self) -> usize {
        self.first_outside() + self.states + self.sequences.len()
    }

    /// The body's inputs but for what is taken from around.
    pub(super) fn inside(&self) -> usize {
        self.first_inside() + self.states + self.sequences.len()
    }
}

/// A Loop or a Scan that is planned.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) turns: Turns,
    pub(super) plan: Arc<TypedRunnableModel>,
    /// The node's inputs that the body takes from around it and that are not known.
    pub(super) captured: Vec<usize>,
    /// What a Loop's body takes as the turn and the condition.
    pub(super) shapes: [TVec<usize>; 2],
    /// What is added to each collected output in a turn.
    pub(super) rows: Vec<TypedFact>,
    /// Of the outputs that are kept, and which of states and collected outputs those are.
    pub(super) facts: TVec<TypedFact>,
    pub(super) kept: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Repeated(pub(super) Arc<Planned>);

impl PartialEq for Repeated {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Repeated {}

impl Op for Repeated {
    fn name(&self) -> StaticName {
        "Repeated".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Repeated {
    // While it is planned nobody could end it.
    not_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let planned = &*self.0;
        let outside = planned.turns.outside();
        ensure!(inputs.len() >= outside, "{} inputs, expected {outside}", inputs.len());
        let captured: TVec<TValue> =
            planned.captured.iter().map(|&index| inputs[index].clone()).collect();
        let given = &inputs[..outside];
        let outputs = match planned.turns.kind {
            Kind::Loop { .. } => planned.run_loop(given, &captured)?,
            Kind::Scan { is_batched: false } => planned.scan(given, &captured)?,
            Kind::Scan { is_batched: true } => planned.scan_batch(given, &captured)?,
        };
        Ok(planned.kept.iter().map(|&index| outputs[index].clone()).collect())
    }
}

impl TypedOp for Repeated {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.0.facts.clone())
    }

    as_op!();
}

impl Planned {
    fn run_loop(&self, given: &[TValue], captured: &[TValue]) -> TractResult<TVec<TValue>> {
        let Kind::Loop { has_count, has_condition } = self.turns.kind else { bail!("no Loop") };
        let count = has_count.then(|| only::<i64>(&given[0])).transpose()?;
        let condition = given.get(usize::from(has_count)).filter(|_| has_condition);
        let condition = condition.map(|condition| only::<bool>(condition));
        let mut goes_on = condition.transpose()?.unwrap_or(true);
        let mut states: TVec<TValue> = given[self.turns.first_outside()..].into();
        let mut rows = Rows::new(self);
        let mut turn = 0i64;
        let [turn_shape, condition_shape] = &self.shapes;
        while goes_on && count.is_none_or(|count| turn < count) {
            let number = tensor0(turn).into_shape(turn_shape)?.into_tvalue();
            let condition = tensor0(true).into_shape(condition_shape)?.into_tvalue();
            let taken = [number, condition].into_iter().chain(states);
            let mut made = self.turn(taken, captured)?;
            let condition = made.next().context("a body without a condition")?;
            goes_on = only::<bool>(&condition)?;
            states = made.by_ref().take(self.turns.states).collect();
            rows.add(made)?;
            turn += 1;
        }
        rows.after(states)
    }

    fn scan(&self, given: &[TValue], captured: &[TValue]) -> TractResult<TVec<TValue>> {
        let (states, tensors) = given.split_at(self.turns.states);
        let sequences = tensors.iter().zip(&self.turns.sequences);
        let sequences = sequences
            .map(|(tensor, it)| Ok((tensor, checked_axis(it.axis, tensor.rank())?, it.is_reversed)))
            .collect::<TractResult<TVec<_>>>()?;
        let lengths = sequences.iter().map(|(tensor, axis, _)| tensor.shape()[*axis]);
        let lengths: TVec<usize> = lengths.collect();
        let count = lengths.first().copied().context("no sequence")?;
        ensure!(lengths.iter().all(|&length| length == count), "sequences of {lengths:?}");
        let mut states: TVec<TValue> = states.into();
        let mut rows = Rows::new(self);
        for turn in 0..count {
            let mut taken = states;
            for &(tensor, axis, is_reversed) in &sequences {
                let place = if is_reversed { count - 1 - turn } else { turn };
                taken.push(row(tensor, axis, place)?);
            }
            let mut made = self.turn(taken, captured)?;
            states = made.by_ref().take(self.turns.states).collect();
            rows.add(made)?;
        }
        rows.after(states)
    }

    fn scan_batch(&self, given: &[TValue], captured: &[TValue]) -> TractResult<TVec<TValue>> {
        let sizes: Vec<Option<usize>> =
            given.iter().map(|tensor| tensor.shape().first().copied()).collect();
        let batch = sizes.first().copied().flatten().context("no batch")?;
        ensure!(batch > 0 && sizes.iter().all(|&size| size == Some(batch)), "batches of {sizes:?}");
        let mut outputs: Vec<Vec<TValue>> = Vec::new();
        for index in 0..batch {
            let given: TVec<TValue> =
                given.iter().map(|tensor| row(tensor, 0, index)).collect::<TractResult<_>>()?;
            let made = self.scan(&given, captured)?;
            outputs.resize(made.len(), Vec::new());
            outputs.iter_mut().zip(made).for_each(|(output, row)| output.push(row));
        }
        outputs.into_iter().map(|rows| stacked(rows, Sequence::FIRST)).collect()
    }

    /// What the body gives in one turn.
    fn turn(
        &self,
        taken: impl IntoIterator<Item = TValue>,
        captured: &[TValue],
    ) -> TractResult<IntoIter<TValue>> {
        bodies::ask()?;
        let taken = taken.into_iter().chain(captured.iter().cloned()).collect();
        Ok(bodies::run_inner(&self.plan, taken)?.into_vec().into_iter())
    }
}

/// Elements that a row counts as, at least.
const LEAST_OF_ROW: usize = 32;

/// The rows of collected outputs, by output.
struct Rows<'a> {
    planned: &'a Planned,
    rows: Vec<Vec<TValue>>,
    elements: usize,
}

impl<'a> Rows<'a> {
    fn new(planned: &'a Planned) -> Self {
        Self { planned, rows: vec![Vec::new(); planned.turns.collected.len()], elements: 0 }
    }

    fn add(&mut self, made: impl Iterator<Item = TValue>) -> TractResult<()> {
        for (rows, row) in self.rows.iter_mut().zip(made) {
            // Each has some memory of its own, also where it is empty.
            self.elements = self.elements.saturating_add(row.len().max(LEAST_OF_ROW));
            rows.push(row);
        }
        checked_len(&[self.elements])?;
        Ok(())
    }

    /// All outputs: the states, and these.
    fn after(self, states: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut outputs = states;
        let collected = self.planned.turns.collected.iter().zip(&self.planned.rows);
        for (rows, (&sequence, fact)) in self.rows.into_iter().zip(collected) {
            let is_empty = rows.is_empty();
            outputs.push(if is_empty { none(fact, sequence)? } else { stacked(rows, sequence)? });
        }
        Ok(outputs)
    }
}

/// One place of an axis, without that.
fn row(tensor: &Tensor, axis: usize, place: usize) -> TractResult<TValue> {
    let mut shape: TVec<usize> = tensor.shape().into();
    shape.remove(axis);
    Ok(tensor.slice(axis, place, place + 1)?.into_shape(&shape)?.into_tvalue())
}

fn stacked(mut rows: Vec<TValue>, sequence: Sequence) -> TractResult<TValue> {
    if sequence.is_reversed {
        rows.reverse();
    }
    let rank = rows.first().context("no rows")?.rank();
    let axis = checked_axis(sequence.axis, rank + 1)?;
    let rows = rows.into_iter().map(|row| {
        let mut shape: TVec<usize> = row.shape().into();
        shape.insert(axis, 1);
        row.into_tensor().into_shape(&shape)
    });
    let rows: Vec<Tensor> = rows.collect::<TractResult<_>>()?;
    Ok(Tensor::stack_tensors(axis, &rows)?.into_tvalue())
}

/// What no turn added to.
fn none(fact: &TypedFact, sequence: Sequence) -> TractResult<TValue> {
    fn empty<T: Datum>(shape: &[usize]) -> TractResult<Tensor> {
        Ok(tract_ndarray::ArrayD::<T>::default(shape).into_tensor())
    }
    let sizes =
        fact.shape.as_concrete().context("no turn, and rows of a size that is not known")?;
    let mut shape: TVec<usize> = sizes.into();
    shape.insert(checked_axis(sequence.axis, shape.len() + 1)?, 0);
    Ok(dispatch_datum!(empty(fact.datum_type)(&shape))?.into_tvalue())
}
