//! Loop, which tract lacks, and Scan, which it takes apart, so that what does not depend on the turn before is
//! computed for all turns at once. But one within another goes on from where it was at the outer one's turn
//! before, outputs that are alike get one direction or shape, sequences of no length lose states, and some graphs
//! keep tract busy for ever. What a body takes follows from what the node does, also where it does not say of what
//! types its inputs are, as those of ONNX's own functions. It is planned once and runs turn by turn.

use tract_onnx::model::{OnnxOpRegister, ParseResult, ParsingContext};
use tract_onnx::pb::{GraphProto, NodeProto, TypeProto, ValueInfoProto, type_proto};
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::konst::Const;

use super::super::bodies;
use super::super::fuse::{self, PackedWeights};
use super::attributes::integers;
use super::distances;
use super::kernel::{Built, Unknown, checked_axis, whole};
use super::turns::{Kind, Planned, Repeated, Sequence, Turns};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Loop", read_loop);
    operators.insert("Scan", read_scan);
}

fn read_loop(context: &ParsingContext, node: &NodeProto) -> Built {
    let is_given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    ensure!((2..node.input.len()).all(is_given), "a state without a name");
    let kind = Kind::Loop { has_count: is_given(0), has_condition: is_given(1) };
    read(context, node, kind, (node.input.len().saturating_sub(2), Vec::new()))
}

fn read_scan(context: &ParsingContext, node: &NodeProto) -> Built {
    let is_batched = context.onnx_operator_set_version < 9;
    if !is_batched && let Some(distances) = distances::of_scan(context, node) {
        return distances;
    }
    let mut inputs = &node.input[..];
    if is_batched {
        let lengths = inputs.split_off_first().context("no inputs")?;
        ensure!(lengths.is_empty(), "lengths of a Scan's sequences are not served");
    }
    ensure!(inputs.iter().all(|name| !name.is_empty()), "an input without a name");
    let count = usize::try_from(node.get_attr::<i64>("num_scan_inputs")?)?;
    let states = inputs.len().checked_sub(count).context("fewer inputs than num_scan_inputs")?;
    let directions = if is_batched { "directions" } else { "scan_input_directions" };
    let sequences = sequences(node, count, ["scan_input_axes", directions])?;
    read(context, node, Kind::Scan { is_batched }, (states, sequences))
}

/// # Errors
/// Axes or directions of another number of sequences.
fn sequences(node: &NodeProto, count: usize, names: [&str; 2]) -> TractResult<Vec<Sequence>> {
    let [axes, directions] = [integers(node, names[0])?, integers(node, names[1])?];
    for (name, list) in names.iter().zip([axes, directions]) {
        let came = list.len();
        ensure!(came == 0 || came == count, "{came} {name}, expected {count}");
    }
    let of = |index: usize| Sequence {
        axis: axes.get(index).copied().unwrap_or(0),
        is_reversed: directions.get(index).is_some_and(|&direction| direction == 1),
    };
    Ok((0..count).map(of).collect())
}

fn read(
    context: &ParsingContext,
    node: &NodeProto,
    kind: Kind,
    (states, sequences_of_inputs): (usize, Vec<Sequence>),
) -> Built {
    let mut body = node.get_attr::<&GraphProto>("body")?.clone();
    let shapes = [0usize, 1].map(|index| shape_of_one(body.input.get(index)));
    // Of some type, as tract wants; which it is follows from what comes in.
    let tensor = type_proto::Tensor { elem_type: 1, shape: None };
    let value = Some(type_proto::Value::TensorType(tensor));
    let some = TypeProto { value, ..TypeProto::default() };
    body.input.iter_mut().for_each(|input| input.r#type = Some(some.clone()));
    let ParseResult { model, unresolved_inputs: captured, .. } = context.parse_graph(&body)?;
    let mut turns = Turns { kind, states, sequences: sequences_of_inputs, collected: Vec::new() };
    let (came, expected) = (model.inputs.len(), turns.inside() + captured.len());
    ensure!(came == expected, "a body of {came} inputs, expected {expected}");
    let collected = model.outputs.len().checked_sub(turns.first_given() + states);
    let collected = collected.context("a body that does not give all states")?;
    turns.collected = match turns.kind {
        Kind::Scan { is_batched: false } => {
            sequences(node, collected, ["scan_output_axes", "scan_output_directions"])?
        }
        _ => vec![Sequence::FIRST; collected],
    };
    let outputs = states + collected;
    ensure!(node.output.len() <= outputs, "{} outputs, expected {outputs}", node.output.len());
    let named = node.output.iter().enumerate().filter(|(_, name)| !name.is_empty());
    let kept = named.map(|(index, _)| index).collect();
    let mut body = model;
    for index in 0..body.inputs.len() {
        body.set_input_fact(index, InferenceFact::default())?;
    }
    let count = Unknown::new(context);
    Ok((Box::new(Repeat { body, turns, shapes, kept, count }), captured))
}

/// What a Loop's body takes as the turn, or as the condition: a scalar, or a list of one.
fn shape_of_one(value: Option<&ValueInfoProto>) -> TVec<usize> {
    let value = value.and_then(|value| value.r#type.as_ref()?.value.as_ref());
    let shape = value.and_then(|type_proto::Value::TensorType(tensor)| tensor.shape.as_ref());
    match shape.is_some_and(|shape| shape.dim.len() == 1) {
        true => tvec![1],
        false => tvec![],
    }
}

#[derive(Debug, Clone)]
struct Repeat {
    body: InferenceModel,
    turns: Turns,
    shapes: [TVec<usize>; 2],
    /// Which of the outputs, of states and collected ones, the node has.
    kept: Vec<usize>,
    /// How often a Loop goes round.
    count: Unknown,
}

/// Without its value, and of whole numbers where tract has sizes.
fn plain(fact: &InferenceFact) -> InferenceFact {
    let is_size = fact.datum_type.concretize() == Some(DatumType::TDim);
    let datum_type = if is_size { DatumType::I64.into() } else { fact.datum_type };
    InferenceFact { datum_type, ..fact.clone().without_value() }
}

fn without_axis(fact: &InferenceFact, axis: i64) -> TractResult<InferenceFact> {
    let Some(rank) = fact.shape.rank().concretize() else {
        return Ok(InferenceFact { shape: ShapeFactoid::default(), ..fact.clone() });
    };
    let axis = checked_axis(axis, usize::try_from(rank)?)?;
    let mut dims: TVec<DimFact> = fact.shape.dims().cloned().collect();
    dims.remove(axis);
    Ok(InferenceFact { shape: ShapeFactoid::closed(dims), ..fact.clone() })
}

fn with_axis(fact: &InferenceFact, axis: i64, size: DimFact) -> TractResult<InferenceFact> {
    let Some(rank) = fact.shape.rank().concretize() else { return Ok(fact.clone()) };
    let axis = checked_axis(axis, usize::try_from(rank)? + 1)?;
    let mut dims: TVec<DimFact> = fact.shape.dims().cloned().collect();
    dims.insert(axis, size);
    Ok(InferenceFact { shape: ShapeFactoid::closed(dims), ..fact.clone() })
}

fn size_of(fact: &InferenceFact, axis: i64) -> TractResult<DimFact> {
    let Some(rank) = fact.shape.rank().concretize() else { return Ok(DimFact::default()) };
    let axis = checked_axis(axis, usize::try_from(rank)?)?;
    Ok(fact.shape.dim(axis).unwrap_or_default())
}

impl Repeat {
    /// What the body takes, for what the node does.
    fn inside(&self, outside: &[InferenceFact]) -> TractResult<TVec<InferenceFact>> {
        let turns = &self.turns;
        ensure!(outside.len() >= turns.outside(), "{} inputs", outside.len());
        let (given, captured) = outside.split_at(turns.outside());
        let (states, sequences) = given[turns.first_outside()..].split_at(turns.states);
        let mut facts = TVec::new();
        if turns.is_loop() {
            let [turn, condition] = &self.shapes;
            facts.push(InferenceFact::dt_shape(DatumType::I64, &turn[..]));
            facts.push(InferenceFact::dt_shape(DatumType::Bool, &condition[..]));
        }
        let row = |fact: &InferenceFact| match turns.is_batched() {
            true => without_axis(&plain(fact), 0),
            false => Ok(plain(fact)),
        };
        for state in states {
            facts.push(row(state)?);
        }
        for (fact, sequence) in sequences.iter().zip(&turns.sequences) {
            facts.push(without_axis(&row(fact)?, sequence.axis)?);
        }
        facts.extend(captured.iter().cloned());
        Ok(facts)
    }

    /// All that the node could give, for what it takes and what its body gives.
    fn given(
        &self,
        outside: &[InferenceFact],
        made: &[InferenceFact],
    ) -> TractResult<Vec<InferenceFact>> {
        let turns = &self.turns;
        let batch = match turns.is_batched() {
            true => Some(size_of(outside.first().context("no inputs")?, 0)?),
            false => None,
        };
        let count = match turns.sequences.first() {
            None => GenericFactoid::Only(self.count.dim(0)),
            // Behind the batch.
            Some(sequence) if batch.is_some() => {
                size_of(&without_axis(&outside[turns.states], 0)?, sequence.axis)?
            }
            Some(sequence) => size_of(&outside[turns.states], sequence.axis)?,
        };
        let (states, rows) = made[turns.first_given()..].split_at(turns.states);
        let states = states.iter().map(|fact| TractResult::Ok(plain(fact)));
        let rows = rows.iter().zip(&turns.collected);
        let rows = rows.map(|(fact, it)| with_axis(&plain(fact), it.axis, count.clone()));
        let all = states.chain(rows).map(|fact| match &batch {
            Some(batch) => with_axis(&fact?, 0, batch.clone()),
            None => fact,
        });
        all.collect()
    }

    /// The body for inputs of these facts, and which of the node's it still takes from around.
    fn typed(&self, outside: &[InferenceFact]) -> TractResult<(TypedModel, Vec<usize>)> {
        let mut body = self.body.clone();
        let (mut left, mut captured) = (Vec::new(), Vec::new());
        for (index, fact) in self.inside(outside)?.into_iter().enumerate() {
            let outlet = body.inputs[index];
            let from_around = index.checked_sub(self.turns.inside());
            match fact.value.concretize().filter(|_| from_around.is_some()) {
                Some(value) => body.node_mut(outlet.node).op = Box::new(Const::new(value)?),
                None => {
                    left.push(outlet);
                    captured.extend(from_around.map(|index| self.turns.outside() + index));
                }
            }
            body.set_outlet_fact(outlet, fact)?;
        }
        body.set_input_outlets(&left)?;
        let mut typed = body.into_typed()?;
        bodies::give_numbers(&mut typed)?;
        self.check_states(&typed)?;
        Ok((typed, captured))
    }

    /// # Errors
    /// A state that a turn leaves of another type or shape than it found it.
    fn check_states(&self, body: &TypedModel) -> TractResult<()> {
        for index in 0..self.turns.states {
            let before = body.input_fact(self.turns.first_inside() + index)?;
            let after = body.output_fact(self.turns.first_given() + index)?;
            let is_same = before.datum_type == after.datum_type && before.shape == after.shape;
            ensure!(is_same, "a turn makes of state {index}, {before:?}, another: {after:?}");
        }
        Ok(())
    }
}

impl PartialEq for Repeat {
    fn eq(&self, _other: &Self) -> bool {
        false
    }
}

impl Eq for Repeat {}

impl Op for Repeat {
    fn name(&self) -> StaticName {
        "Repeated".into()
    }

    not_a_typed_op!();
}

impl EvalOp for Repeat {
    not_out_of_plan!();
}

impl InferenceOp for Repeat {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let own = |facts: TVec<&InferenceFact>| facts.into_iter().cloned().collect::<TVec<_>>();
        let (inputs, mut outputs) = (own(inputs), own(outputs));
        for (index, found) in self.inside(&inputs)?.iter().enumerate() {
            let mut fact = self.body.input_fact(index)?.clone();
            fact.unify_with(found)?;
            self.body.set_input_fact(index, fact)?;
        }
        self.body.analyse(false)?;
        let made = (0..self.body.outputs.len()).map(|index| self.body.output_fact(index).cloned());
        let made: TVec<InferenceFact> = made.collect::<TractResult<_>>()?;
        let given = self.given(&inputs, &made)?;
        for (output, &index) in outputs.iter_mut().zip(&self.kept) {
            output.unify_with(&given[index])?;
        }
        Ok((inputs, outputs, own(observed)))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.kept.len())
    }

    fn to_typed(
        &self,
        _source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        for (index, input) in inputs.iter_mut().enumerate().take(self.turns.outside()) {
            *input = whole(target, &node.name, index, *input)?;
        }
        let outside = inputs.iter().map(|&it| Ok(InferenceFact::from(target.outlet_fact(it)?)));
        let outside: TVec<InferenceFact> = outside.collect::<TractResult<_>>()?;
        let (typed, captured) = self.typed(&outside)?;
        let outlets = typed.output_outlets()?.iter();
        let made = outlets.map(|&outlet| Ok(typed.outlet_fact(outlet)?.without_value()));
        let made: TVec<TypedFact> = made.collect::<TractResult<_>>()?;
        let rows = made[self.turns.first_given() + self.turns.states..].to_vec();
        let made: TVec<InferenceFact> = made.iter().map(InferenceFact::from).collect();
        let given = self.given(&outside, &made)?;
        let facts = self.kept.iter().map(|&index| TypedFact::try_from(&given[index]));
        let facts = facts.collect::<TractResult<_>>()?;
        let planned = Planned {
            turns: self.turns.clone(),
            plan: bodies::plan(fuse::fuse(typed, &PackedWeights::of_one_plan())?)?,
            captured,
            shapes: self.shapes.clone(),
            rows,
            facts,
            kept: self.kept.clone(),
        };
        target.wire_node(&*node.name, Repeated(Arc::new(planned)), &inputs)
    }

    as_op!();
}
