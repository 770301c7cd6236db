//! One ONNX graph: what it takes and gives, and the engine's session that runs it.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tract_onnx::pb;

use crate::cores::Helpers;
use crate::guard::guarded;
use crate::tensor::{Contract, TensorSpec, Value};
use crate::{EngineKind, contract, onnxruntime, rten, sound, tract, whole};

/// Why a file is not a graph that can be served; for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub(crate) String);

/// Why a run gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The tensors are not what the graph takes.
    #[error("{0}")]
    Refused(String),
    /// The graph broke while it ran.
    #[error("{0}")]
    Failed(String),
    /// It asked for more memory than it may.
    #[error("{0}")]
    OutOfMemory(String),
    /// The caller said so.
    #[error("stopped")]
    Stopped,
}

/// Whoever wants a run's answer.
pub trait Watch: Sync {
    /// Whether it is wanted no longer. Asked between operators, where an engine can.
    fn is_over(&self) -> bool;

    /// What the run may take beside its inputs, bytes.
    fn memory(&self) -> usize {
        usize::MAX
    }

    /// Called between operators, and within long ones, by engines that can wait there: others may want
    /// the core that the run computes on.
    fn give_way(&self) {}

    /// The cores that it computes on, and threads that may help the caller's, if any. Only tract has those
    /// help, and only in runs on the caller's own thread: a worker's can stop amid an operator, while
    /// helpers still write.
    fn helpers(&self) -> Option<Helpers> {
        None
    }

    /// Told of CPU time that another thread than the caller's has spent on it.
    fn computed_elsewhere(&self, _cpu: Duration) {}
}

impl<F: Fn() -> bool + Sync> Watch for F {
    fn is_over(&self) -> bool {
        self()
    }
}

/// An engine's prepared form of a graph. Any number of threads may run it at a time; no state
/// is left from one run to another.
pub trait Session: fmt::Debug + Send + Sync {
    /// Runs it on values in the order of the graph's inputs, whose datatypes, ranks, fixed sizes,
    /// lengths and elements have been checked. Returns values in the order of its outputs.
    ///
    /// # Errors
    /// The values do not fit, the engine failed, the run took too much memory, or is over.
    fn run(&self, inputs: &[Value<'_>], watch: &dyn Watch) -> Result<Vec<Value<'static>>, Failure>;

    /// Runs it once, and says what each operator took, in the order they ran. Empty where the
    /// engine does not tell.
    ///
    /// # Errors
    /// As for [`Session::run`].
    fn profile(&self, _inputs: &[Value<'_>]) -> Result<Vec<(String, Duration)>, Failure> {
        Ok(Vec::new())
    }
}

/// A graph, parsed and optimised once, run by any number of sandboxes at a time.
#[derive(Debug)]
pub struct Graph {
    contract: Contract,
    session: Box<dyn Session>,
    engine: EngineKind,
    /// An operator whose answer for a row depends on the others by its nature.
    mixing: Option<&'static str>,
    /// Of the compiled plan whose memory it uses.
    plan_bytes: usize,
    /// What it was run on, where that is wanted.
    recorded: OnceLock<Mutex<Vec<Vec<Value<'static>>>>>,
}

/// Runs that are recorded.
const MAX_RECORDED: usize = 8;

impl Graph {
    /// Parses and optimises the bytes of an ONNX file for an engine. Weights in other files are
    /// refused: a bundle's graphs are whole.
    ///
    /// # Errors
    /// Not ONNX, no inputs or outputs, an operator or type that the engine lacks.
    pub fn load(onnx: &[u8], engine: EngineKind) -> Result<Self, LoadError> {
        Self::compile(onnx, engine, false).map(|(graph, _)| graph)
    }

    /// As [`Graph::load`]; where it `is_to_be_compiled`, also returns what its compiled plan is
    /// written of, if the engine has such and it can hold all of the graph's operators.
    ///
    /// # Errors
    /// As for [`Graph::load`].
    pub fn compile(
        onnx: &[u8],
        engine: EngineKind,
        is_to_be_compiled: bool,
    ) -> Result<(Self, Option<Compiled>), LoadError> {
        guarded_load(|| Self::parse(onnx, engine, is_to_be_compiled))
    }

    /// Loads what [`Compiled::write`] wrote for that key: in a fraction of the time, as packed
    /// weights are used where they lie, in a file that is best mapped. The graph's own file is
    /// asked for only if it is run with sizes that were not planned.
    ///
    /// # Errors
    /// It is damaged, another's, or of another version of this program.
    pub fn wake(
        compiled: &Bytes,
        key: &str,
        onnx: impl Fn() -> Result<Bytes, String> + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        let onnx = tract::Onnx(Box::new(onnx));
        let (session, contract) = guarded_load(|| tract::wake(compiled, key, onnx))?;
        let (session, plan_bytes) = (Box::new(session), compiled.len());
        let (engine, mixing, recorded) = (EngineKind::Tract, None, OnceLock::new());
        Ok(Self { contract, session, engine, mixing, plan_bytes, recorded })
    }

    fn parse(
        onnx: &[u8],
        engine: EngineKind,
        is_to_be_compiled: bool,
    ) -> Result<(Self, Option<Compiled>), LoadError> {
        let file = tract::File::read(onnx)?;
        sound::check(&file.proto)?;
        let mut contract = contract::read(graph_of(&file.proto)?)?;
        let mut fused = None;
        let (session, outputs): (Box<dyn Session>, _) = match engine {
            EngineKind::Tract => {
                let (session, outputs, kept) = tract::load(&file, &contract, is_to_be_compiled)?;
                fused = kept;
                boxed((session, outputs))
            }
            EngineKind::Rten => boxed(rten::load(&file, &contract)?),
            EngineKind::OnnxRuntime => boxed(onnxruntime::load(&file.bytes(), &contract)?),
        };
        contract::fill_in(&mut contract.outputs, &outputs)?;
        let mixing = whole::mixing(&file.proto);
        let fused = fused.filter(|_| mixing.is_none());
        let compiled = fused.map(|fused| Compiled { fused, contract: contract.clone() });
        let (plan_bytes, recorded) = (0, OnceLock::new());
        let graph = Self { contract, session, engine, mixing, plan_bytes, recorded };
        Ok((graph, compiled))
    }

    /// Loads it for the first of `engines` that can.
    ///
    /// # Errors
    /// None can; why not, for each that says something else than the first.
    pub fn load_any(onnx: &[u8], engines: &[EngineKind]) -> Result<Self, LoadError> {
        Self::compile_any(onnx, engines, false).map(|(graph, _)| graph)
    }

    /// As [`Graph::compile`] for the first of `engines` that can load it.
    ///
    /// # Errors
    /// As for [`Graph::load_any`].
    pub fn compile_any(
        onnx: &[u8],
        engines: &[EngineKind],
        is_to_be_compiled: bool,
    ) -> Result<(Self, Option<Compiled>), LoadError> {
        let mut reasons: Vec<String> = Vec::new();
        for &engine in engines {
            match Self::compile(onnx, engine, is_to_be_compiled) {
                Ok(graph) => return Ok(graph),
                Err(LoadError(reason)) => {
                    let is_first = reasons.is_empty();
                    if !reasons.contains(&reason) {
                        reasons.push(if is_first { reason } else { format!("{engine}: {reason}") });
                    }
                }
            }
        }
        Err(LoadError(reasons.join("; ")))
    }

    /// Bytes of the compiled plan that it was woken from and uses where they lie.
    pub fn plan_bytes(&self) -> usize {
        self.plan_bytes
    }

    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// The operator for which rows of several callers must not be run at once, if it has one.
    pub(crate) fn mixes_rows(&self) -> Option<&'static str> {
        self.mixing
    }

    /// From now on the inputs of its first runs are kept.
    pub fn record(&self) {
        self.recorded.get_or_init(Mutex::default);
    }

    /// What it was run on since [`Graph::record`].
    pub fn recorded(&self) -> Vec<Vec<Value<'static>>> {
        let recorded = self.recorded.get().map(|runs| runs.lock());
        recorded
            .map(|runs| runs.unwrap_or_else(PoisonError::into_inner).clone())
            .unwrap_or_default()
    }

    /// Its inputs and outputs, named, in the file's order; -1 where a size is free.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Runs the graph on values in the order of its inputs, for `watch`: a function that says
    /// whether it is over will do.
    ///
    /// # Errors
    /// The values do not fit the graph, the engine failed or panicked, the run took too much
    /// memory, or is over.
    pub fn run(
        &self,
        inputs: &mut [Value<'_>],
        watch: &dyn Watch,
    ) -> Result<Vec<Value<'static>>, Failure> {
        self.fit(inputs)?;
        if let Some(runs) = self.recorded.get() {
            let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
            if runs.len() < MAX_RECORDED {
                runs.push(inputs.iter().map(Value::to_owned_value).collect());
            }
        }
        guarded(|| self.session.run(inputs, watch))
            .unwrap_or_else(|panic| Err(Failure::Failed(format!("the engine panicked: {panic}"))))
    }
}

/// What a graph's compiled plan is written of.
pub struct Compiled {
    fused: tract::Fused,
    contract: Contract,
}

impl Compiled {
    /// Writes it under a key, which names the graph's file.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, key: &str, to: &mut dyn Write) -> io::Result<()> {
        self.fused.write(key, &self.contract, to)
    }
}

fn guarded_load<T>(load: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    guarded(load).unwrap_or_else(|panic| {
        Err(LoadError(format!("the engine panicked while it read the graph: {panic}")))
    })
}

fn boxed<S: Session + 'static, T>((session, rest): (S, T)) -> (Box<dyn Session>, T) {
    (Box::new(session), rest)
}

impl Graph {
    /// What each operator took in one run.
    ///
    /// # Errors
    /// As for [`Graph::run`].
    pub fn profile(&self, inputs: &mut [Value<'_>]) -> Result<Vec<(String, Duration)>, Failure> {
        self.fit(inputs)?;
        guarded(|| self.session.profile(inputs))
            .unwrap_or_else(|panic| Err(Failure::Failed(format!("the engine panicked: {panic}"))))
    }

    /// Checks values against what the graph takes.
    fn fit(&self, inputs: &mut [Value<'_>]) -> Result<(), Failure> {
        let specs = &self.contract.inputs;
        if inputs.len() != specs.len() {
            let (wanted, came) = (specs.len(), inputs.len());
            return Err(Failure::Refused(format!("the graph has {wanted} inputs, got {came}")));
        }
        let mut fits = specs.iter().zip(inputs).map(|(spec, value)| fit(spec, value));
        fits.try_for_each(|fit| fit.map_err(Failure::Refused))
    }
}

fn graph_of(proto: &pb::ModelProto) -> Result<&pb::GraphProto, LoadError> {
    proto.graph.as_ref().ok_or_else(|| LoadError("not an ONNX file: it holds no graph".into()))
}

/// Checks a value against what the graph takes. A scalar may come as \[1\], as wasi-nn writes it.
fn fit(spec: &TensorSpec, value: &mut Value<'_>) -> Result<(), String> {
    let name = &spec.name;
    if value.datatype != spec.datatype {
        return Err(format!("graph input `{name}` is {}, got {}", spec.datatype, value.datatype));
    }
    let checked = value.check_length().and_then(|()| value.check_elements());
    checked.map_err(|reason| format!("graph input `{name}`: {reason}"))?;
    if spec.shape.is_empty() && value.shape == [1] {
        value.shape.clear();
    }
    let fits = spec.shape.len() == value.shape.len()
        && spec
            .shape
            .iter()
            .zip(&value.shape)
            .all(|(&want, &got)| want < 0 || want as usize == got);
    match fits {
        true => Ok(()),
        false => {
            Err(format!("graph input `{name}` has shape {:?}, got {:?}", spec.shape, value.shape))
        }
    }
}
