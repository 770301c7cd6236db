//! If. tract wants both branches to give the same shapes, even where the condition is known
//! before the graph runs, and plans a branch anew at each run. Here a known condition puts its
//! branch in the node's place; otherwise both are planned once, and the one that is taken runs.

use tract_onnx::model::{OnnxOpRegister, ParseResult, ParsingContext};
use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::prelude::TypedRunnableModel;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::*;

use super::super::bodies;
use super::super::fuse::{self, PackedWeights};
use super::kernel::{Built, only};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("If", read_if);
}

fn read_if(context: &ParsingContext, node: &NodeProto) -> Built {
    ensure!(node.input.first().is_some_and(|name| !name.is_empty()), "no condition");
    let parse = |name: &str| context.parse_graph(node.get_attr::<&GraphProto>(name)?);
    let parsed = [parse("else_branch")?, parse("then_branch")?];
    let mut captured: Vec<String> = Vec::new();
    let branches = parsed.map(|ParseResult { model, unresolved_inputs, .. }| {
        // Sources that the branch has for what it takes from around it are its last inputs.
        let inputs = unresolved_inputs.into_iter().map(|name| {
            let known = captured.iter().position(|known| *known == name);
            let index = known.unwrap_or(captured.len());
            if known.is_none() {
                captured.push(name);
            }
            index + 1
        });
        let inputs = inputs.collect();
        Branch { body: model, inputs }
    });
    let outputs = node.output.len();
    for Branch { body, inputs } in &branches {
        ensure!(body.inputs.len() == inputs.len(), "a branch has inputs of its own");
        let came = body.outputs.len();
        ensure!(came == outputs, "a branch has {came} outputs, expected {outputs}");
    }
    ensure!(node.output.iter().all(|name| !name.is_empty()), "an output without a name");
    Ok((Box::new(If { branches }), captured))
}

#[derive(Debug, Clone)]
struct Branch {
    body: InferenceModel,
    /// For each input of the body, which of the node's it is.
    inputs: Vec<usize>,
}

impl Branch {
    fn infer(&mut self, inputs: &[InferenceFact]) -> TractResult<TVec<InferenceFact>> {
        for (index, &outer) in self.inputs.iter().enumerate() {
            let mut fact = self.body.input_fact(index)?.clone();
            fact.unify_with(&inputs[outer])?;
            self.body.set_input_fact(index, fact)?;
        }
        self.body.analyse(false)?;
        let outputs = 0..self.body.outputs.len();
        outputs.map(|index| self.body.output_fact(index).cloned()).collect()
    }

    /// The branch for inputs of these facts.
    fn typed(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<TypedModel> {
        let mut body = self.body.clone();
        for (index, &outer) in self.inputs.iter().enumerate() {
            let fact = InferenceFact::from(model.outlet_fact(inputs[outer])?);
            body.set_input_fact(index, fact)?;
        }
        body.into_typed()
    }

    /// Wires the branch's nodes into the model.
    fn inline(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let body = self.typed(model, inputs)?;
        let mut wires: HashMap<OutletId, OutletId> = HashMap::new();
        for (&inner, &outer) in body.input_outlets()?.iter().zip(&self.inputs) {
            wires.insert(inner, inputs[outer]);
        }
        for id in body.eval_order()? {
            let node = body.node(id);
            if wires.contains_key(&OutletId::new(id, 0)) {
                continue;
            }
            let sources: TVec<OutletId> = node.inputs.iter().map(|input| wires[input]).collect();
            let name = format!("{prefix}.{}", node.name);
            let outlets = model.wire_node(name, node.op.clone(), &sources)?;
            for (slot, &outlet) in outlets.iter().enumerate() {
                wires.insert(OutletId::new(id, slot), outlet);
            }
        }
        Ok(body.output_outlets()?.iter().map(|outlet| wires[outlet]).collect())
    }

    fn plan(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<Planned> {
        let mut typed = self.typed(model, inputs)?;
        // The other branch may have a number where tract has a size. To plan both before this is known,
        // and again after, would take twice the time at each depth.
        bodies::give_numbers(&mut typed)?;
        let outlets = typed.output_outlets()?.iter();
        let facts = outlets.map(|&outlet| Ok(typed.outlet_fact(outlet)?.without_value()));
        let facts = facts.collect::<TractResult<_>>()?;
        let plan = bodies::plan(fuse::fuse(typed, &PackedWeights::of_one_plan())?)?;
        Ok(Planned { plan, facts, inputs: self.inputs.clone() })
    }
}

#[derive(Debug, Clone)]
struct If {
    /// For a condition that does not hold, and for one that does.
    branches: [Branch; 2],
}

impl PartialEq for If {
    fn eq(&self, _other: &Self) -> bool {
        false
    }
}

impl Eq for If {}

impl Op for If {
    fn name(&self) -> StaticName {
        "If".into()
    }

    not_a_typed_op!();
}

impl EvalOp for If {
    not_out_of_plan!();
}

impl InferenceOp for If {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let own = |facts: TVec<&InferenceFact>| facts.into_iter().cloned().collect::<TVec<_>>();
        let (mut inputs, mut outputs) = (own(inputs), own(outputs));
        let condition = inputs.first_mut().context("no condition")?;
        condition.datum_type.unify_with(&DatumType::Bool.into())?;
        let found = match condition.value.concretize() {
            Some(condition) => {
                let taken = usize::from(only::<bool>(&condition)?);
                self.branches[taken].infer(&inputs)?
            }
            None => {
                let [otherwise, then] = &mut self.branches;
                match (otherwise.infer(&inputs), then.infer(&inputs)) {
                    (Ok(otherwise), Ok(then)) => {
                        otherwise.iter().zip(&then).map(|(a, b)| what_both_say(a, b)).collect()
                    }
                    // Not to be taken with these inputs, or not understood without their sizes.
                    _ => TVec::new(),
                }
            }
        };
        for (output, found) in outputs.iter_mut().zip(&found) {
            output.unify_with(found)?;
        }
        Ok((inputs, outputs, own(observed)))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.branches[0].body.outputs.len())
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        let known = match &target.outlet_fact(inputs[0])?.konst {
            Some(condition) => Some(condition.clone()),
            None => source.outlet_fact(node.inputs[0])?.value.concretize(),
        };
        if let Some(condition) = known {
            let taken = usize::from(only::<bool>(&condition)?);
            return self.branches[taken].inline(&node.name, target, &inputs);
        }
        let [otherwise, then] = &self.branches;
        let planned = match [otherwise.plan(target, &inputs), then.plan(target, &inputs)] {
            [Err(error), Err(_)] => return Err(error),
            planned => planned.map(|planned| {
                planned.map_err(|error| format!("a branch cannot take these shapes: {error:#}"))
            }),
        };
        if let [Ok(otherwise), Ok(then)] = &planned {
            let (otherwise, then) = (&otherwise.facts, &then.facts);
            ensure!(
                otherwise == then,
                "the branches give different shapes, {otherwise:?} and {then:?}, and the condition is not known before the run"
            );
        }
        target.wire_node(&*node.name, Taken { planned: Arc::new(planned) }, &inputs)
    }

    as_op!();
}

/// What is true of either.
fn what_both_say(a: &InferenceFact, b: &InferenceFact) -> InferenceFact {
    let mut both = InferenceFact::any();
    // Sizes are numbers once the branches are planned, and sizes where the condition is known by then.
    let are_sizes = a.datum_type.concretize() == Some(DatumType::TDim);
    if a.datum_type == b.datum_type && !are_sizes {
        both.datum_type = a.datum_type;
    }
    let (ranks, b_rank) = (a.shape.rank().concretize(), b.shape.rank().concretize());
    if ranks.is_some() && ranks == b_rank && !a.shape.is_open() && !b.shape.is_open() {
        let dims = a.shape.dims().zip(b.shape.dims());
        let dims = dims.map(|(a, b)| if a == b { a.clone() } else { Default::default() });
        both.shape = ShapeFactoid::closed(dims.collect());
    }
    both
}

#[derive(Debug)]
struct Planned {
    plan: Arc<TypedRunnableModel>,
    facts: TVec<TypedFact>,
    inputs: Vec<usize>,
}

/// Runs the branch that the condition asks for.
#[derive(Debug, Clone)]
struct Taken {
    /// For a condition that does not hold and for one that does; one is there at least.
    planned: Arc<[Result<Planned, String>; 2]>,
}

impl PartialEq for Taken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.planned, &other.planned)
    }
}

impl Eq for Taken {}

impl Op for Taken {
    fn name(&self) -> StaticName {
        "If".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Taken {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let condition = only::<bool>(inputs.first().context("no condition")?)?;
        match &self.planned[usize::from(condition)] {
            Ok(branch) => {
                let inputs = branch.inputs.iter().map(|&index| inputs[index].clone());
                bodies::run_inner(&branch.plan, inputs.collect())
            }
            Err(reason) => bail!("{reason}"),
        }
    }
}

impl TypedOp for Taken {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let planned = self.planned.iter().find_map(|planned| planned.as_ref().ok());
        Ok(planned.context("no branch")?.facts.clone())
    }

    as_op!();
}
