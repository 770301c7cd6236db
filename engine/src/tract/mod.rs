//! tract: a graph as optimised plans. Only this room names tract's types, beside the ONNX
//! messages that all of the crate reads.

mod file;
mod fuse;
mod operators;
mod plans;
mod values;

use std::time::{Duration, Instant};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::{SimpleState, eval};

use crate::contract::{self, Inferred};
use crate::graph::{Failure, LoadError, Session};
use crate::kind::EngineKind;
use crate::tensor::{Contract, Value};
pub(crate) use file::File;
use plans::{Plan, Plans};

/// Builds and optimises a graph, and says what is known of its outputs.
///
/// # Errors
/// An operator, a type or a combination that tract lacks.
pub(crate) fn load(
    file: &File<'_>,
    contract: &Contract,
) -> Result<(TractSession, Vec<Inferred>), LoadError> {
    contract::check(contract, EngineKind::Tract, values::has)?;
    let model = framework().model_for_proto_model(&file.proto);
    let mut model =
        model.map_err(|error| LoadError(format!("cannot be read: {}", chain(&error))))?;
    file.put_weights(&mut model)?;
    let (plans, outputs) = Plans::new(model).map_err(LoadError)?;
    let inferred = outputs.iter().map(|fact| Inferred {
        datatype: values::datatype_of(fact.datum_type),
        shape: fact.shape.iter().map(|size| size.as_i64().unwrap_or(-1)).collect(),
    });
    Ok((TractSession { plans }, inferred.collect()))
}

fn framework() -> tract_onnx::Onnx {
    // The types that intermediate tensors claim to have are often wrong about symbolic sizes
    // ("impossible to unify Sym(batch) with Val(1)"); tract infers them anyway.
    let mut framework = tract_onnx::onnx().with_ignore_value_info(true);
    operators::register(&mut framework.op_register);
    framework
}

#[derive(Debug)]
pub(crate) struct TractSession {
    plans: Plans,
}

impl Session for TractSession {
    fn run(
        &self,
        inputs: &[Value<'_>],
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Value<'static>>, Failure> {
        let inputs = inputs.iter().map(values::to_tract).collect::<Result<TVec<_>, _>>();
        let inputs = inputs.map_err(Failure::Refused)?;
        let plan = self.plans.get(&inputs).map_err(Failure::Refused)?;
        let outputs = run_plan(&plan, inputs, is_over, None)?;
        let outputs = outputs.iter().map(|value| values::from_tract(value));
        outputs.collect::<Result<_, _>>().map_err(Failure::Failed)
    }

    fn profile(&self, inputs: &[Value<'_>]) -> Result<Vec<(String, Duration)>, Failure> {
        let inputs = inputs.iter().map(values::to_tract).collect::<Result<TVec<_>, _>>();
        let inputs = inputs.map_err(Failure::Refused)?;
        let plan = self.plans.get(&inputs).map_err(Failure::Refused)?;
        let mut times = Vec::new();
        let mut timed = |operator: String, took| times.push((operator, took));
        run_plan(&plan, inputs, &|| false, Some(&mut timed))?;
        Ok(times)
    }
}

fn run_plan(
    plan: &Plan,
    inputs: TVec<TValue>,
    is_over: &(dyn Fn() -> bool + Sync),
    mut timed: Option<&mut dyn FnMut(String, Duration)>,
) -> Result<TVec<TValue>, Failure> {
    let failed = |error: TractError| Failure::Failed(chain(&error));
    let mut stopped = false;
    let mut state = SimpleState::new(&plan.runnable).map_err(failed)?;
    let outputs = state.run_plan_with_eval(plan.pick(inputs), |context, op_state, node, inputs| {
        if is_over() {
            stopped = true;
            return Err(TractError::msg("stopped"));
        }
        let Some(timed) = &mut timed else { return eval(context, op_state, node, inputs) };
        let started = Instant::now();
        let outputs = eval(context, op_state, node, inputs);
        timed(format!("{} {}", node.op.name(), node.name), started.elapsed());
        outputs
    });
    match outputs {
        Ok(outputs) => Ok(outputs),
        Err(_) if stopped => Err(Failure::Stopped),
        Err(error) => Err(failed(error)),
    }
}

/// An error and its causes on one line.
fn chain(error: &TractError) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
