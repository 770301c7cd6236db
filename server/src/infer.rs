//! One inference, in no protocol's form: the request is checked against the model's contract,
//! waits its turn, runs in a fresh sandbox, and the guest's answer is checked in its turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use wisp_engine::{Failure, Helpers};

use crate::compare::differences;
use crate::error::Error;
use crate::nn::Run;
use crate::overhead;
use crate::repository::{Picked, Repository, Revision, Shadow};
use crate::response_cache::{Answer, RequestKey};
use crate::sandbox::{Fault, Request, Response, Sandbox, Timings};
use crate::schedule::{Refused, Scheduler};
use crate::stats::Phases;
use crate::tensor::{Contract, Parameter, Tensor};
use crate::usage::{Totals, Usage, Used};

/// What a client asks of a model.
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    pub inputs: Vec<Tensor>,
    /// Empty: all of them.
    pub outputs: Vec<String>,
    pub parameters: Vec<(String, Parameter)>,
    /// How long the client waits, where it says so otherwise than by a parameter.
    pub timeout: Option<Duration>,
    /// The API key it came with, by its name.
    pub key: Option<Arc<str>>,
}

/// A model's answer.
#[derive(Debug)]
pub struct InferResponse {
    /// In the order asked for, else the contract's.
    pub outputs: Vec<Tensor>,
    pub parameters: Vec<(String, Parameter)>,
    /// How long the request waited for its turn.
    pub queue: Duration,
    pub timings: Timings,
    pub used: Used,
}

/// The repository and the threads its models run on.
pub struct Inference {
    pub repository: Repository,
    pub scheduler: Scheduler,
    pub usage: Arc<Usage>,
    shadows: Arc<Semaphore>,
}

/// Shadowed requests that may be under way; each holds its request and its answer.
const SHADOWS: usize = 8;

/// How far a shadow's floating-point value may be from the one it is compared with and still
/// count as equal, relative to the larger of it and 1.
const SHADOW_TOLERANCE: f64 = 1e-4;

impl Inference {
    pub fn new(repository: Repository, scheduler: Scheduler, usage: Arc<Usage>) -> Self {
        Self { repository, scheduler, usage, shadows: Arc::new(Semaphore::new(SHADOWS)) }
    }

    /// Answers one request by the revision that was picked for it, and lets a shadow see it.
    ///
    /// # Errors
    /// As [`Inference::infer`]; what becomes of the shadow is counted only.
    pub async fn answer(
        self: &Arc<Self>,
        model: &str,
        picked: Picked,
        request: InferRequest,
    ) -> Result<InferResponse, Error> {
        let Picked { revision, shadow } = picked;
        let Some(shadow) = shadow else { return self.infer(model, &revision, request).await };
        // It is the operator's, not the caller's.
        let shadowed = InferRequest { key: None, ..request.clone() };
        let response = self.infer(model, &revision, request).await?;
        self.shadow(model.to_owned(), shadow, shadowed, response.outputs.clone());
        Ok(response)
    }

    fn shadow(
        self: &Arc<Self>,
        model: String,
        shadow: Shadow,
        request: InferRequest,
        expected: Vec<Tensor>,
    ) {
        let Ok(permit) = self.shadows.clone().try_acquire_owned() else {
            shadow.counts.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let inference = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let answered = async {
                let revision = shadow.version.revision().await?;
                inference.infer(&model, &revision, request).await
            };
            let counts = &shadow.counts;
            let count = match answered.await {
                Err(error) => {
                    let version = &shadow.version.label;
                    tracing::debug!(model, version, "the shadow failed: {error}");
                    &counts.failed
                }
                Ok(response) => match differences(&expected, &response.outputs, SHADOW_TOLERANCE) {
                    Ok(_) => &counts.equal,
                    Err(_) => &counts.different,
                },
            };
            count.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Runs one request, and counts it.
    ///
    /// # Errors
    /// See [`Error`]: the request does not fit the contract, no turn could be had, the guest or
    /// the graph failed, or the deadline passed.
    pub async fn infer(
        &self,
        model: &str,
        revision: &Arc<Revision>,
        request: InferRequest,
    ) -> Result<InferResponse, Error> {
        let pending = revision.stats.enter();
        let answered = self.answer_or_run(model, revision, request).await;
        revision.touch();
        match &answered {
            Ok(Answered::FromCache(_)) => pending.answered_from_cache(),
            Ok(Answered::Run(InferResponse { queue, timings, .. })) => pending.succeeded(Phases {
                queue: *queue + timings.waited,
                sandbox: timings.start,
                before: timings.before,
                graphs: (timings.guest + timings.compute)
                    .saturating_sub(timings.before + timings.after),
                after: timings.after,
                guest: timings.guest,
                compute: timings.compute,
                batch: timings.batch,
            }),
            Err(error) => pending.failed(error.kind(), error.trap()),
        }
        answered.map(|(Answered::Run(response) | Answered::FromCache(response))| response)
    }

    async fn answer_or_run(
        &self,
        model: &str,
        revision: &Arc<Revision>,
        request: InferRequest,
    ) -> Result<Answered, Error> {
        let InferRequest { inputs, outputs, parameters, timeout, key } = request;
        let urgency = Urgency::read(&parameters).map_err(Error::InvalidInput)?;
        let inputs = order_inputs(&revision.contract, inputs).map_err(Error::InvalidInput)?;
        check_wanted(model, &revision.contract, &outputs)?;
        let totals = self.usage.totals(model, &revision.version, key);
        overhead::belongs_to(&totals);
        let Some(cache) = &revision.response_cache else {
            let asked = Asked { inputs, outputs, parameters, timeout, urgency };
            return self.run(model, revision, asked, totals).await.map(Answered::Run);
        };
        let request_key = RequestKey::of(&inputs, &outputs, &parameters);
        if let Some(answer) = cache.get(&request_key) {
            let (outputs, parameters) = (answer.outputs.clone(), answer.parameters.clone());
            let used = totals.answered_from_cache(bytes_of(&inputs), bytes_of(&outputs));
            let (queue, timings) = Default::default();
            let response = InferResponse { outputs, parameters, queue, timings, used };
            return Ok(Answered::FromCache(response));
        }
        revision.stats.cache_misses.fetch_add(1, Ordering::Relaxed);
        let asked = Asked { inputs, outputs, parameters, timeout, urgency };
        let response = self.run(model, revision, asked, totals).await?;
        let (outputs, parameters) = (response.outputs.clone(), response.parameters.clone());
        cache.put(request_key, Answer { outputs, parameters });
        Ok(Answered::Run(response))
    }

    async fn run(
        &self,
        model: &str,
        revision: &Arc<Revision>,
        asked: Asked,
        totals: Arc<Totals>,
    ) -> Result<InferResponse, Error> {
        let Asked { inputs, outputs, parameters, timeout, urgency } = asked;
        // A client can only shorten it.
        let patience =
            [timeout, urgency.timeout].into_iter().flatten().fold(revision.deadline, Duration::min);
        let deadline = Instant::now() + patience;
        let helpers = Helpers { cores: self.scheduler.cores(), most: revision.helpers };
        let graph_bytes = revision.guest.limits().graph_bytes;
        let run = Run::limited(deadline, revision.cpu_limit, graph_bytes, Some(helpers));
        let _cancel = CancelOnDrop(run.clone());
        let bytes = bytes_of(&inputs);
        let request = Request { inputs, outputs: outputs.clone(), parameters };
        let work = {
            // Held until it ends, which may be after its request: so it counts as in use.
            let (revision, run) = (revision.clone(), run.clone());
            async move {
                let meter = totals.meter(run.clone(), bytes);
                let (result, timings) = Sandbox::new(&revision.guest, &run).run(request).await;
                let answered = |response: Response| {
                    let used = meter.answered(bytes_of(&response.outputs));
                    (response, used)
                };
                (result.map(answered), timings)
            }
        };
        let work = {
            let run = run.clone();
            async move { run.metered(work).await }
        };
        let ran = self.scheduler.run(&revision.gate, urgency.level, deadline, bytes, work).await;
        let ((result, timings), queue) =
            ran.map_err(|refused| self.refusal(model, patience, refused))?;
        let (response, used) =
            result.map_err(|fault| explain(model, revision, patience, fault, run.failure()))?;
        let Response { outputs: given, parameters } = response;
        let outputs = check_outputs(&revision.contract, &outputs, given)
            .map_err(|reason| Error::GuestFailed { model: model.to_owned(), reason })?;
        Ok(InferResponse { outputs, parameters, queue, timings, used })
    }

    fn refusal(&self, model: &str, deadline: Duration, refused: Refused) -> Error {
        let model = model.to_owned();
        match refused {
            Refused::QueueFull(waiting) => Error::Overloaded { model, waiting },
            Refused::Deadline => Error::Deadline { model, deadline },
            Refused::Panicked => {
                Error::Internal(format!("the sandbox of model `{model}` panicked"))
            }
        }
    }
}

/// A request that fits its model's contract.
struct Asked {
    inputs: Vec<Tensor>,
    outputs: Vec<String>,
    parameters: Vec<(String, Parameter)>,
    timeout: Option<Duration>,
    urgency: Urgency,
}

enum Answered {
    Run(InferResponse),
    FromCache(InferResponse),
}

fn bytes_of(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.data.len()).sum()
}

/// What a request says of its place among the others, by the protocol's parameters.
struct Urgency {
    /// The lowest goes first.
    level: u32,
    timeout: Option<Duration>,
}

/// Of requests that say nothing: only level 1 goes before them.
const DEFAULT_LEVEL: u32 = 2;

impl Urgency {
    /// Reads `priority`, 1 the highest and 0 the default, and `timeout`, in microseconds, 0 none.
    fn read(parameters: &[(String, Parameter)]) -> Result<Self, String> {
        let mut urgency = Self { level: DEFAULT_LEVEL, timeout: None };
        for (name, value) in parameters {
            let odd = |unit| {
                format!("parameter `{name}`: expected {unit}, an integer of 0 or more, got {value}")
            };
            match name.as_str() {
                "priority" => match value.as_count().ok_or_else(|| odd("a level"))? {
                    0 => urgency.level = DEFAULT_LEVEL,
                    level => urgency.level = u32::try_from(level).unwrap_or(u32::MAX),
                },
                "timeout" => match value.as_count().ok_or_else(|| odd("microseconds"))? {
                    0 => urgency.timeout = None,
                    microseconds => urgency.timeout = Some(Duration::from_micros(microseconds)),
                },
                _ => {}
            }
        }
        Ok(urgency)
    }
}

/// Ends the run of a request whose client has gone.
struct CancelOnDrop(Arc<Run>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Puts the inputs in the contract's order.
///
/// # Errors
/// A text for the client: the input's name, what was expected, what came.
fn order_inputs(contract: &Contract, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, String> {
    let mut slots: Vec<Option<Tensor>> = contract.inputs.iter().map(|_| None).collect();
    for input in inputs {
        let name = &input.name;
        let Some(index) = contract.inputs.iter().position(|spec| spec.name == *name) else {
            let known: Vec<_> = contract.inputs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(format!("unexpected input `{name}`, the model has {known:?}"));
        };
        let (spec, slot) = (&contract.inputs[index], &mut slots[index]);
        if slot.is_some() {
            return Err(format!("input `{name}` came twice"));
        }
        if input.datatype != spec.datatype {
            return Err(format!(
                "input `{name}`: expected datatype {}, got {}",
                spec.datatype, input.datatype
            ));
        }
        if !spec.accepts(&input.shape) {
            return Err(format!(
                "input `{name}`: expected shape {:?}, got {:?}",
                spec.shape, input.shape
            ));
        }
        input.check_length().map_err(|reason| format!("input `{name}`: {reason}"))?;
        *slot = Some(input);
    }
    let ordered = contract.inputs.iter().zip(slots).map(|(spec, slot)| {
        slot.ok_or_else(|| {
            format!("input `{}` is missing: expected {} {:?}", spec.name, spec.datatype, spec.shape)
        })
    });
    ordered.collect()
}

fn check_wanted(model: &str, contract: &Contract, wanted: &[String]) -> Result<(), Error> {
    for (index, name) in wanted.iter().enumerate() {
        if contract.outputs.iter().all(|spec| spec.name != *name) {
            let known: Vec<_> = contract.outputs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(Error::InvalidInput(format!(
                "model `{model}` has no output `{name}`, it has {known:?}"
            )));
        }
        if wanted[..index].contains(name) {
            return Err(Error::InvalidInput(format!("output `{name}` is asked for twice")));
        }
    }
    Ok(())
}

/// Holds a guest to its contract: every wanted output is there, once, of its datatype and shape.
fn check_outputs(
    contract: &Contract,
    wanted: &[String],
    mut given: Vec<Tensor>,
) -> Result<Vec<Tensor>, String> {
    let specs = contract.outputs.iter();
    let specs: Vec<_> = match wanted {
        [] => specs.collect(),
        _ => wanted
            .iter()
            .filter_map(|name| contract.outputs.iter().find(|spec| spec.name == *name))
            .collect(),
    };
    let outputs = specs.into_iter().map(|spec| {
        let index = given.iter().position(|output| output.name == spec.name);
        let output =
            given.swap_remove(index.ok_or_else(|| format!("it gave no output `{}`", spec.name))?);
        if output.datatype != spec.datatype || !spec.accepts(&output.shape) {
            return Err(format!(
                "output `{}` is {} {:?}, its contract says {} {:?}",
                spec.name, output.datatype, output.shape, spec.datatype, spec.shape
            ));
        }
        output.check_length().map_err(|reason| format!("output `{}`: {reason}", spec.name))?;
        Ok(output)
    });
    outputs.collect()
}

/// Puts a sandbox's end in the client's terms. What the engine said stands behind what the
/// guest made of it: wasi-nn shows a guest one line for every failure.
fn explain(
    model: &str,
    revision: &Revision,
    deadline: Duration,
    fault: Fault,
    failure: Option<Failure>,
) -> Error {
    let model = model.to_owned();
    match (fault, failure) {
        (Fault::Stopped, _) | (Fault::Internal(_), Some(Failure::Stopped)) => {
            Error::Deadline { model, deadline }
        }
        (Fault::Spent, _) => {
            let limit = revision.cpu_limit.unwrap_or(deadline);
            Error::CpuLimit { model, limit }
        }
        (Fault::InvalidInput(text), _) => Error::InvalidInput(text),
        (Fault::Unsupported(text), _) => Error::Unsupported(text),
        // The client's own tensors, as they came.
        (Fault::Internal(_), Some(Failure::Refused(reason))) if revision.passthrough => {
            Error::InvalidInput(reason)
        }
        (Fault::Internal(_), Some(Failure::Failed(reason))) => Error::Compute { model, reason },
        (Fault::Internal(_), Some(Failure::OutOfMemory(_))) => {
            Error::GraphMemory { model, limit_mib: revision.guest.limits().graph_bytes >> 20 }
        }
        (Fault::Internal(text), Some(Failure::Refused(reason))) => {
            Error::GuestFailed { model, reason: format!("{text}: {reason}") }
        }
        (Fault::Internal(reason), None) => Error::GuestFailed { model, reason },
        (Fault::Memory, _) => {
            Error::GuestMemory { model, limit_mib: revision.guest.limits().memory_bytes >> 20 }
        }
        (Fault::NoRoom, _) => {
            Error::NoRoom("all instances of the sandbox pool are in use".to_owned())
        }
        (Fault::Trap { kind, reason }, _) => Error::GuestTrap { model, kind, reason },
    }
}
