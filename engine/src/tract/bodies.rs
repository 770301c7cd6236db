//! Graphs that a graph's nodes run, of If and of loops: they end when their run is over, and give way
//! to others' runs, as the graph around them does.

use std::cell::Cell;
use std::mem;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::tract_core::ops::scan::OptScan;
use tract_onnx::tract_hir::tract_core::plan::eval;

use super::team;
use crate::graph::Watch;

thread_local! {
    /// Of the run under way on this thread.
    static WATCH: Cell<Option<&'static dyn Watch>> = const { Cell::new(None) };
}

/// A run's error where nobody wants its answer any more.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct Over;

/// Whether it failed for being over, and not by itself.
pub(super) fn is_stop(error: &TractError) -> bool {
    error.chain().any(|cause| cause.is::<Over>())
}

/// Runs a plan, and the graphs inside it, until `watch` says that it is over. `eval` is tract's own or
/// does something beside.
///
/// # Errors
/// An operator's; it is over, as [`is_stop`] tells.
pub(super) fn run<E>(
    plan: &Arc<TypedRunnableModel>,
    inputs: TVec<TValue>,
    watch: &dyn Watch,
    mut eval: E,
) -> TractResult<TVec<TValue>>
where
    E: FnMut(
        &EvalContext,
        Option<&mut (dyn OpState + 'static)>,
        &TypedNode,
        TVec<TValue>,
    ) -> TractResult<TVec<TValue>>,
{
    // SAFETY: only the lifetime changes, and the place is given back before this function ends, in
    // a panic too. What reads it does so on this thread, within this call.
    let asked = unsafe { mem::transmute::<&dyn Watch, &'static dyn Watch>(watch) };
    let _outer = Outer(WATCH.replace(Some(asked)));
    SimpleState::new(plan)?.run_plan_with_eval(inputs, |context, state, node, inputs| {
        ask()?;
        eval(context, state, node, inputs)
    })
}

/// Whose run this thread goes on with.
struct Outer(Option<&'static dyn Watch>);

impl Drop for Outer {
    fn drop(&mut self) {
        WATCH.set(self.0);
    }
}

/// Runs a graph inside the graph that this thread runs.
///
/// # Errors
/// As for [`run`].
pub(super) fn run_inner(
    plan: &Arc<TypedRunnableModel>,
    inputs: TVec<TValue>,
) -> TractResult<TVec<TValue>> {
    SimpleState::new(plan)?.run_plan_with_eval(inputs, |context, state, node, inputs| {
        ask()?;
        eval(context, state, node, inputs)
    })
}

/// For what takes long within an operator, too.
///
/// # Errors
/// The run that this thread is in is over.
pub(super) fn ask() -> TractResult<()> {
    let Some(watch) = WATCH.get() else { return Ok(()) };
    team::tell(watch);
    watch.give_way();
    if watch.is_over() { Err(Over.into()) } else { Ok(()) }
}

/// Within a kernel: lets the run that this thread is in give way.
pub(super) fn pause() {
    if let Some(watch) = WATCH.get() {
        watch.give_way();
    }
}

/// Has a graph give whole numbers where tract has sizes.
///
/// # Errors
/// tract's.
pub(super) fn give_numbers(body: &mut TypedModel) -> TractResult<()> {
    let mut outputs = body.output_outlets()?.to_vec();
    for (index, output) in outputs.iter_mut().enumerate() {
        if body.outlet_fact(*output)?.datum_type == DatumType::TDim {
            let name = format!("whole_output_{index}");
            *output = body.wire_node(name, cast(DatumType::I64), &[*output])?[0];
        }
    }
    body.select_output_outlets(&outputs)
}

/// Operators of a loop's body from one that asks to the next: most are so small that to ask takes
/// as long as they do.
const ASKS_EACH: usize = 8;

/// The plan of a model that `fuse` has made, whose loops end when their run is over, too.
///
/// # Errors
/// tract's.
pub(super) fn plan(mut fused: TypedModel) -> TractResult<Arc<TypedRunnableModel>> {
    fused.optimize()?;
    watch(&mut fused)?;
    fused.into_runnable()
}

/// Lets the loops of an optimised model ask in each turn, and within it.
///
/// # Errors
/// tract cannot plan a body anew.
fn watch(model: &mut TypedModel) -> TractResult<()> {
    for node in &mut model.nodes {
        let Some(scan) = node.op_as::<OptScan>() else { continue };
        let mut asking = (**scan).clone();
        let mut body = scan.plan.model().clone();
        watch(&mut body)?;
        let may_ask = |id: &usize| {
            let node = body.node(*id);
            !node.inputs.is_empty() && !node.op_is::<OptScan>() && !node.op_is::<Const>()
        };
        let nodes: Vec<usize> = body.eval_order()?.into_iter().filter(may_ask).collect();
        for id in nodes.into_iter().skip(ASKS_EACH).step_by(ASKS_EACH) {
            let node = body.node_mut(id);
            if node.op.state(&EvalContext::out_of_plan())?.is_none() {
                node.op = Box::new(Asking(node.op.clone()));
            }
        }
        let plan = SimplePlan::build(body, &RunOptions::default())?.with_turn_handler(EachTurn);
        asking.plan = Arc::new(plan);
        node.op = Box::new(OptScan::new(Arc::new(asking)));
    }
    Ok(())
}

#[derive(Debug)]
struct EachTurn;

impl TurnStateHandler for EachTurn {
    fn before_plan_eval(&self, _: &mut TurnState) -> TractResult<()> {
        ask()
    }

    fn after_plan_eval(&self, _: &mut TurnState) -> TractResult<()> {
        Ok(())
    }
}

/// An operator without state that asks first.
#[derive(Debug, Clone)]
struct Asking(Box<dyn TypedOp>);

impl PartialEq for Asking {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Asking {}

impl Op for Asking {
    fn name(&self) -> StaticName {
        self.0.name()
    }

    fn mints_runtime_symbols(&self) -> bool {
        self.0.mints_runtime_symbols()
    }

    fn required_bound_symbols(&self, inputs: &[&TypedFact]) -> TVec<Symbol> {
        self.0.required_bound_symbols(inputs)
    }

    op_as_typed_op!();
}

impl EvalOp for Asking {
    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ask()?;
        self.0.eval(context, inputs)
    }

    fn forwards_input(&self) -> Option<usize> {
        self.0.forwards_input()
    }

    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        self.0.eval_out_of_plan(inputs)
    }

    fn drop_session(&self, session: SessionId, node: usize) {
        self.0.drop_session(session, node);
    }
}

impl TypedOp for Asking {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    as_op!();
}
