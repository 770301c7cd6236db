//! rten: a graph that needs no plan for each shape. Only this room names rten's types.
//!
//! Its tensors are f32, i32, i8 and u8. A graph's INT64 and BOOL are i32 in it: an input outside
//! i32 is refused, and so is a graph with a constant outside, unless it is a place to slice from or
//! to; but a sum wraps, silently. Inside a graph its doubles and halves are f32.
//!
//! A run cannot be stopped: there is neither a callback between operators nor a timeout. So each
//! has a worker, whose caller stops waiting when the run is over. It gives way to others where it
//! asks for memory, which each operator does; not where rten may hold a lock then, at its first run and
//! in a graph with bodies.
//!
//! rten runs a graph inside a pool of threads, never on the caller's own: each worker has a pool
//! of one. rten makes a pool of its own beside these, with a thread for each physical core, which
//! then sleeps for good (`RTEN_NUM_THREADS=1` in the environment makes that one thread).

mod trust;
mod values;

use std::cell::Cell;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rten::{
    Dimension, Model, ModelOptions, NodeId, RunError, RunErrorKind, RunOptions, ThreadPool,
    ValueType,
};

use crate::contract::{self, Inferred};
use crate::graph::{Failure, LoadError, Session, Watch};
use crate::kind::EngineKind;
use crate::stack::with_stack;
use crate::tensor::{Contract, Datatype, TensorSpec, Value};
use crate::tract::File;
use crate::worker::{self, Bounds, Entered, Given};
use crate::{memory, sound};

/// Nodes in a line, in the body of a loop or a branch: those are planned by recursion too, on a
/// pool's thread, whose stack cannot be set.
const DEEPEST_BODY: usize = 1000;

/// Reads and optimises a graph, and says what is known of its outputs.
///
/// # Errors
/// An operator, a type or a combination that rten lacks.
pub(crate) fn load(
    file: &File<'_>,
    contract: &Contract,
) -> Result<(RtenSession, Vec<Inferred>), LoadError> {
    let deepest_body = sound::deepest_body(&file.proto);
    if let Some(depth) = deepest_body.filter(|&depth| depth > DEEPEST_BODY) {
        return Err(LoadError(format!(
            "a branch or body of {depth} nodes in a line, expected at most {DEEPEST_BODY}"
        )));
    }
    // Its reader takes a tensor's sizes one by one only, not packed as they are written here.
    if let Some(what) = file.rewritten() {
        return Err(LoadError(format!("rten takes no {what}")));
    }
    trust::check(file)?;
    let has = |datatype| values::element_of(datatype).is_some();
    contract::check(contract, EngineKind::Rten, has)?;
    let model = with_stack(|| {
        // Weights laid out at load as products of matrices want them: a transformer runs in 0.7
        // to 0.9 of the time, for a quarter more of its load and a third more of its memory.
        let mut options = ModelOptions::with_all_ops();
        options.prepack_weights(true);
        options.load(file.onnx().to_vec())
    })?;
    let model = model.map_err(|error| LoadError(format!("cannot be read: {}", line(&error))))?;
    let ids = |specs: &[TensorSpec]| {
        let ids = specs
            .iter()
            .map(|spec| model.node_id(&spec.name).map_err(|error| LoadError(line(&error))));
        ids.collect::<Result<Vec<_>, _>>()
    };
    let (inputs, outputs) = (ids(&contract.inputs)?, ids(&contract.outputs)?);
    let has_bodies = deepest_body.is_some();
    let inferred = outputs.iter().zip(&contract.outputs).map(|(&id, spec)| infer(&model, id, spec));
    let inferred = inferred.collect();
    let datatypes = contract.outputs.iter().map(|spec| spec.datatype).collect();
    let given = Given::default();
    Ok((
        RtenSession {
            model: Arc::new(model),
            inputs,
            outputs,
            datatypes,
            given,
            has_bodies,
            is_planned: AtomicBool::new(false),
        },
        inferred,
    ))
}

/// What rten knows of an output; as the file declares it where rten knows nothing.
fn infer(model: &Model, id: NodeId, declared: &TensorSpec) -> Inferred {
    let node = model.node_info(id);
    let shape = node.as_ref().and_then(|node| node.shape()).map(|dimensions| {
        let sizes = dimensions.iter().map(|dimension| match dimension {
            Dimension::Fixed(size) => i64::try_from(*size).unwrap_or(-1),
            Dimension::Symbolic(_) => -1,
        });
        sizes.collect()
    });
    let datatype = match node.and_then(|node| node.dtype()) {
        None => Some(declared.datatype),
        Some(ValueType::Tensor(element))
            if values::element_of(declared.datatype) == Some(element) =>
        {
            Some(declared.datatype)
        }
        Some(ValueType::Tensor(element)) => values::datatype_of(element),
        Some(_) => None,
    };
    Inferred { datatype, shape: shape.unwrap_or_else(|| declared.shape.clone()) }
}

#[derive(Debug)]
pub(crate) struct RtenSession {
    model: Arc<Model>,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    /// The outputs' datatypes to a client.
    datatypes: Vec<Datatype>,
    given: Given,
    has_bodies: bool,
    /// Whether it was run: rten remembers the order of its nodes, which it finds by recursion.
    is_planned: AtomicBool,
}

thread_local! {
    /// Its worker's.
    static POOL: Arc<ThreadPool> = Arc::new(ThreadPool::with_num_threads(1));
    /// Of a pool's thread.
    static ENTERED: Cell<Option<Entered>> = const { Cell::new(None) };
}

/// The bounds of a run that a pool's one thread is within, while rten plans the graph on the
/// worker's own thread, which has the stack for that. (Bodies are planned on the pool's: see
/// [`DEEPEST_BODY`].)
struct InPool<'a>(&'a ThreadPool);

impl<'a> InPool<'a> {
    fn enter(pool: &'a ThreadPool, bounds: &Bounds) -> Self {
        pool.run(|| ENTERED.set(Some(bounds.enter())));
        Self(pool)
    }
}

impl Drop for InPool<'_> {
    fn drop(&mut self) {
        self.0.run(|| drop(ENTERED.take()));
    }
}

impl Session for RtenSession {
    fn run(&self, inputs: &[Value<'_>], watch: &dyn Watch) -> Result<Vec<Value<'static>>, Failure> {
        let inputs = self
            .inputs
            .iter()
            .zip(inputs)
            .map(|(&id, value)| Ok((id, values::to_rten(value)?.into())));
        let inputs = inputs.collect::<Result<_, _>>().map_err(Failure::Refused)?;
        let (model, wanted) = (self.model.clone(), self.outputs.clone());
        let (is_planned, has_bodies) = (self.is_planned.load(Ordering::Relaxed), self.has_bodies);
        let outputs = worker::run(&self.given, (watch, 0), move |bounds| {
            let pool = POOL.with(Arc::clone);
            let options = RunOptions::default().with_thread_pool(Some(pool.clone()));
            let run = || model.run(inputs, &wanted, Some(options)).map_err(failure);
            if is_planned {
                return pool.run(|| match has_bodies {
                    // A body is planned at its own first run, under a lock.
                    true => bounds.within(run),
                    false => bounds.within(|| memory::pausing(&|| bounds.give_way(), run)),
                });
            }
            let _entered = InPool::enter(&pool, bounds);
            run()
        })?;
        self.is_planned.store(true, Ordering::Relaxed);
        let outputs = outputs.into_iter().zip(&self.datatypes);
        let outputs = outputs.map(|(value, &datatype)| values::from_rten(value, datatype));
        outputs.collect::<Result<_, _>>().map_err(Failure::Failed)
    }
}

fn failure(error: RunError) -> Failure {
    match error.kind() {
        RunErrorKind::InvalidInput => Failure::Refused(line(&error)),
        _ => Failure::Failed(line(&error)),
    }
}

fn line(error: &dyn Display) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}
