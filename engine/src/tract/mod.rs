//! tract: a graph as optimised plans. Only this room names tract's types, beside the ONNX
//! messages that all of the crate reads.

mod bodies;
mod by_sizes;
mod compiled;
pub(crate) mod contrib;
mod extent;
mod file;
mod fuse;
mod operators;
mod plans;
mod team;
mod values;
mod widen;

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::eval;

use crate::contract::{self, Inferred};
use crate::graph::{Failure, LoadError, Session, Watch};
use crate::kind::EngineKind;
use crate::messages;
use crate::narrow::Narrow;
use crate::tensor::{Contract, Datatype, Value};
use crate::worker::{self, Given};
pub(crate) use file::File;
use plans::{Plan, Plans};

/// A graph before the last step of its optimisation, which a compiled plan can hold.
pub(crate) struct Fused(TypedModel);

/// Where the graph's own file is to be had, or why not.
pub(crate) struct Onnx(pub(crate) Box<dyn Fn() -> Result<Bytes, String> + Send + Sync>);

impl fmt::Debug for Onnx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Onnx")
    }
}

/// Builds and optimises a graph, and says what is known of its outputs.
///
/// # Errors
/// An operator, a type or a combination that tract lacks.
pub(crate) fn load(
    file: &File<'_>,
    contract: &Contract,
    keeps_fused: bool,
) -> Result<(TractSession, Vec<Inferred>, Option<Fused>), LoadError> {
    contract::check(contract, EngineKind::Tract, values::has)?;
    let planned = Plans::planned(read(file)?, keeps_fused).map_err(LoadError)?;
    let outputs = planned.outputs.iter().zip(&contract.outputs);
    let inferred = outputs.map(|(fact, declared)| Inferred {
        datatype: values::datatype_of(fact.datum_type, declared.datatype),
        shape: fact.shape.iter().map(|size| size.as_i64().unwrap_or(-1)).collect(),
    });
    let inferred = inferred.collect();
    let fused = planned.fused.filter(compiled::holds).map(Fused);
    Ok((TractSession::new(planned.plans, file.len(), contract), inferred, fused))
}

fn read(file: &File<'_>) -> Result<InferenceModel, LoadError> {
    let mut proto = messages::parted(contrib::written_out(file)?);
    let are_looked_at = widen::are_looked_at(&file.proto);
    // FP16 can stay as it is.
    let other = file.find(&|narrow| narrow != Narrow::Fp16).map(Narrow::name);
    if let Some(other) = other.filter(|_| are_looked_at) {
        return Err(LoadError(format!("cannot be read: a BitCast beside {other} is not served")));
    }
    let widens = !are_looked_at && file.find(&|_| true).is_some();
    if widens {
        proto = widen::widened(proto);
    }
    let model = framework().model_for_proto_model(&proto);
    let mut model =
        model.map_err(|error| LoadError(format!("cannot be read: {}", chain(&error))))?;
    file.put_weights(&mut model, widens)?;
    Ok(model)
}

/// The plans of a file that was served before.
fn plans_of(onnx: &Onnx) -> Result<Plans, String> {
    let onnx = onnx.0()?;
    let model = File::read(&onnx).and_then(|file| read(&file));
    let planned = Plans::planned(model.map_err(|LoadError(reason)| reason)?, false)?;
    Ok(planned.plans)
}

impl Fused {
    /// Writes the compiled plan of a graph of that contract, under a key.
    ///
    /// # Errors
    /// The writer's.
    pub(crate) fn write(
        &self,
        key: &str,
        contract: &Contract,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        compiled::write(key, contract, &self.0, to)
    }
}

/// Loads what [`Fused::write`] wrote for that key, of a graph whose own file is `onnx`'s.
///
/// # Errors
/// It is damaged, another's, or of another version of this program.
pub(crate) fn wake(
    compiled: &Bytes,
    key: &str,
    onnx: Onnx,
) -> Result<(TractSession, Contract), LoadError> {
    let (contract, fused) = compiled::read(compiled, key).map_err(LoadError)?;
    let plans = Plans::compiled(fused, onnx).map_err(LoadError)?;
    Ok((TractSession::new(plans, compiled.len(), &contract), contract))
}

fn framework() -> tract_onnx::Onnx {
    // The types that intermediate tensors claim to have are often wrong about symbolic sizes
    // ("impossible to unify Sym(batch) with Val(1)"); tract infers them anyway.
    let mut framework = tract_onnx::onnx().with_ignore_value_info(true);
    operators::register(&mut framework.op_register);
    framework
}

/// Of a graph's weights: read, simplified, fused, packed.
const COPIES: usize = 6;

#[derive(Debug)]
pub(crate) struct TractSession {
    plans: Arc<Plans>,
    given: Given,
    /// Of its file, or compiled plan: about what its weights are.
    bytes: usize,
    /// The outputs' datatypes to a client.
    datatypes: Arc<[Datatype]>,
    has_run: AtomicBool,
}

impl TractSession {
    fn new(plans: Plans, bytes: usize, contract: &Contract) -> Self {
        let (plans, given, has_run) = (Arc::new(plans), Given::default(), AtomicBool::new(false));
        let datatypes = contract.outputs.iter().map(|output| output.datatype).collect();
        Self { plans, given, bytes, datatypes, has_run }
    }

    /// Makes a plan for these inputs, on a worker, which may take some copies of the weights, too.
    fn make_plan(&self, inputs: &[Arc<Tensor>], watch: &dyn Watch) -> Result<Arc<Plan>, Failure> {
        let (plans, inputs) = (self.plans.clone(), inputs.to_vec());
        let beside = COPIES * self.bytes;
        worker::run(&self.given, (watch, beside), move |bounds| {
            bounds.within(|| plans.make(&inputs))
        })
    }

    /// Runs a plan, on this thread if it is known not to take too much.
    fn run_plan(
        &self,
        plan: &Arc<Plan>,
        inputs: &[Arc<Tensor>],
        watch: &dyn Watch,
    ) -> Result<Vec<Value<'static>>, Failure> {
        if plan.takes_at_most(watch.memory(), inputs) {
            let run = || run_plan(plan, (inputs, &*self.datatypes), watch, None);
            // The first one mostly waits for memory: helped, EfficientNet-Lite0's took as long, and
            // half as much CPU time again.
            if self.has_run.load(Ordering::Relaxed) {
                return team::with(watch, run);
            }
            self.has_run.store(true, Ordering::Relaxed);
            return run();
        }
        let (plan, inputs, datatypes) = (plan.clone(), inputs.to_vec(), self.datatypes.clone());
        worker::run(&self.given, (watch, 0), move |bounds| {
            let ends = (&*inputs, &*datatypes);
            bounds.within(|| run_plan(&plan, ends, bounds, None))
        })
    }
}

impl Session for TractSession {
    fn run(&self, inputs: &[Value<'_>], watch: &dyn Watch) -> Result<Vec<Value<'static>>, Failure> {
        let inputs = tensors(inputs)?;
        let plan = match self.plans.made(&inputs) {
            Some(plan) => plan,
            None => self.make_plan(&inputs, watch)?,
        };
        match self.run_plan(&plan, &inputs, watch) {
            // As a product that lies otherwise for these sizes, or a slice that ends before them.
            Err(Failure::Failed(_)) if plan.has_free_sizes() => {
                let plan = self.make_plan(&inputs, watch)?;
                self.run_plan(&plan, &inputs, watch)
            }
            outputs => outputs,
        }
    }

    fn profile(&self, inputs: &[Value<'_>]) -> Result<Vec<(String, Duration)>, Failure> {
        let inputs = tensors(inputs)?;
        let plan = self.plans.made(&inputs).map_or_else(|| self.plans.make(&inputs), Ok);
        let plan = plan?;
        let mut times = Vec::new();
        let mut timed = |operator: String, took| times.push((operator, took));
        run_plan(&plan, (&*inputs, &*self.datatypes), &|| false, Some(&mut timed))?;
        Ok(times)
    }
}

fn tensors(inputs: &[Value<'_>]) -> Result<Vec<Arc<Tensor>>, Failure> {
    let inputs = inputs.iter().map(|value| values::to_tract(value).map(Arc::new));
    inputs.collect::<Result<_, _>>().map_err(Failure::Refused)
}

/// Runs it on these inputs, for outputs that are declared of these datatypes.
fn run_plan(
    plan: &Plan,
    (inputs, datatypes): (&[Arc<Tensor>], &[Datatype]),
    watch: &dyn Watch,
    mut timed: Option<&mut dyn FnMut(String, Duration)>,
) -> Result<Vec<Value<'static>>, Failure> {
    let inputs = plan.pick(inputs).map(|input| input.clone().into_tvalue()).collect();
    let outputs = bodies::run(&plan.runnable, inputs, watch, |context, state, node, inputs| {
        let Some(timed) = &mut timed else { return eval(context, state, node, inputs) };
        let started = Instant::now();
        let outputs = eval(context, state, node, inputs);
        timed(format!("{} {}", node.op.name(), node.name), started.elapsed());
        outputs
    });
    match outputs {
        Ok(outputs) => {
            let outputs = outputs.iter().zip(datatypes);
            let outputs = outputs.map(|(value, &declared)| values::from_tract(value, declared));
            outputs.collect::<Result<_, _>>().map_err(Failure::Failed)
        }
        Err(error) if bodies::is_stop(&error) => Err(Failure::Stopped),
        Err(error) => Err(Failure::Failed(chain(&error))),
    }
}

/// An error and its causes on one line.
fn chain(error: &TractError) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
