//! All models, and what became of loading them. The only owner of what is served.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::SetOnce;

use crate::bundle::{Bundle, Source};
use crate::cache::{Cache, CacheKey, Entry};
use crate::error::Error;
use crate::nn::{Graph, Graphs};
use crate::sandbox::{Code, Engine, Guest, Limits, Prepared, Snapshot};
use crate::schedule::Gate;
use crate::tensor::Contract;

/// How long one model may take to load.
const LOADING_DEADLINE: Duration = Duration::from_secs(180);

/// A bundle, ready to answer.
pub struct Revision {
    pub version: String,
    pub contract: Contract,
    pub guest: Arc<Guest>,
    pub graphs: Arc<Graphs>,
    /// Whether the client's tensors reach the graph as they are.
    pub is_bare: bool,
    pub deadline: Duration,
    pub gate: Arc<Gate>,
}

/// A public name, and the revision behind it once that is loaded.
pub struct Model {
    pub name: String,
    path: PathBuf,
    /// How long a caller waits for it to load.
    patience: Duration,
    outcome: SetOnce<Result<Arc<Revision>, String>>,
}

/// What an operator sees of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Loading,
    Ready,
    /// With the reason.
    Failed(String),
}

/// What loading needs besides the bundles.
#[derive(Clone)]
pub struct LoadOptions {
    pub engine: Arc<Engine>,
    /// `None`: every start compiles anew.
    pub cache: Option<Cache>,
    /// For bundles that set none.
    pub limits: Limits,
    /// The longest deadline; a bundle may ask for a shorter one.
    pub deadline: Duration,
    /// Requests of one model that run, and that wait, at a time.
    pub concurrency: usize,
    pub queue: usize,
}

/// All models by name.
pub struct Repository {
    models: HashMap<String, Arc<Model>>,
    order: Vec<Arc<Model>>,
    patience: Duration,
}

impl Repository {
    /// Finds the bundles at `paths`. Nothing is loaded yet: see [`Repository::load`]. A path
    /// without a bundle, and a name that is taken, become models that have failed. Callers wait
    /// `patience` for a model that still loads.
    pub fn find(paths: &[PathBuf], patience: Duration) -> Self {
        let mut repository = Self { models: HashMap::new(), order: Vec::new(), patience };
        for path in paths {
            match Source::find(path) {
                Ok(sources) => sources.into_iter().for_each(|source| repository.add(source)),
                Err(error) => repository.add_failed(Source::at(path), error.to_string()),
            }
        }
        repository
    }

    fn add(&mut self, source: Source) {
        if let Some(taken) = self.models.get(&source.name) {
            let reason = format!("the name is taken by the bundle at {}", taken.path.display());
            let model = Model::new(&source, self.patience);
            model.settle(Err(reason));
            // Listed, so that the operator sees it, and never served.
            self.order.push(Arc::new(model));
            return;
        }
        let reason = check_name(&source.name).err();
        let model = Arc::new(Model::new(&source, self.patience));
        if let Some(reason) = reason {
            model.settle(Err(reason));
        }
        self.models.insert(source.name, model.clone());
        self.order.push(model);
    }

    fn add_failed(&mut self, source: Source, reason: String) {
        let model = Arc::new(Model::new(&source, self.patience));
        model.settle(Err(reason));
        self.models.entry(source.name).or_insert_with(|| model.clone());
        self.order.push(model);
    }

    /// Loads every model that has not failed yet, one after the other; blocks. Callers of
    /// [`Model::revision`] wait meanwhile.
    pub fn load(&self, options: &LoadOptions) {
        for model in &self.order {
            if model.outcome.get().is_some() {
                continue;
            }
            let started = Instant::now();
            let outcome = load_on_thread(model, options);
            let elapsed_ms = started.elapsed().as_millis() as u64;
            match &outcome {
                Ok(_) => tracing::info!(model = model.name, elapsed_ms, "model is ready"),
                Err(reason) => {
                    tracing::error!(model = model.name, elapsed_ms, "model failed: {reason}")
                }
            }
            model.settle(outcome);
        }
    }

    /// The model of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn model(&self, name: &str) -> Result<&Arc<Model>, Error> {
        self.models.get(name).ok_or_else(|| Error::UnknownModel(name.to_owned()))
    }

    /// All models, in the order they were given.
    pub fn models(&self) -> &[Arc<Model>] {
        &self.order
    }

    /// Whether none is still loading.
    pub fn is_settled(&self) -> bool {
        self.order.iter().all(|model| model.state() != State::Loading)
    }
}

impl Model {
    fn new(source: &Source, patience: Duration) -> Self {
        Self {
            name: source.name.clone(),
            path: source.path.clone(),
            patience,
            outcome: SetOnce::new(),
        }
    }

    fn settle(&self, outcome: Result<Arc<Revision>, String>) {
        // Each model is settled by one loader, once.
        let _ = self.outcome.set(outcome);
    }

    pub fn state(&self) -> State {
        match self.outcome.get() {
            None => State::Loading,
            Some(Ok(_)) => State::Ready,
            Some(Err(reason)) => State::Failed(reason.clone()),
        }
    }

    /// The revision that serves `version` (any, where none is given), once it is loaded.
    ///
    /// # Errors
    /// It failed to load or takes too long to, or is of another version.
    pub async fn revision(&self, version: Option<&str>) -> Result<&Arc<Revision>, Error> {
        let outcome = match self.outcome.get() {
            Some(outcome) => outcome,
            None => {
                tokio::time::timeout(self.patience, self.outcome.wait()).await.map_err(|_| {
                    let reason = "it is still loading".to_owned();
                    Error::NotReady { model: self.name.clone(), reason }
                })?
            }
        };
        let revision = outcome.as_ref().map_err(|reason| Error::NotReady {
            model: self.name.clone(),
            reason: reason.clone(),
        })?;
        match version {
            Some(version) if version != revision.version => Err(Error::UnknownVersion {
                model: self.name.clone(),
                version: version.to_owned(),
                known: revision.version.clone(),
            }),
            _ => Ok(revision),
        }
    }
}

/// Names stand in URLs and in logs; `stats` is taken by the protocol.
fn check_name(name: &str) -> Result<(), String> {
    if name == "stats" {
        return Err("the name `stats` is the protocol's own".to_owned());
    }
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !matches!(name, "" | "." | "..") && name.chars().all(is_plain) {
        true => Ok(()),
        false => Err(format!("the name {name:?} may have letters, digits, `-`, `_` and `.` only")),
    }
}

/// A model that the engine cannot stomach must not take the others along: a panic, or a graph
/// that is optimised for ever, fails this one only. (Its thread cannot be ended, and is left.)
fn load_on_thread(model: &Arc<Model>, options: &LoadOptions) -> Result<Arc<Revision>, String> {
    let (send, loaded) = mpsc::channel();
    let (the_model, options) = (model.clone(), options.clone());
    let thread = thread::Builder::new().name("wisp-load-one".into()).spawn(move || {
        let outcome = load(&the_model, &options);
        // Nobody listens any more where it came too late.
        let _ = send.send(outcome);
    });
    thread.map_err(|error| format!("no thread to load it on: {error}"))?;
    match loaded.recv_timeout(LOADING_DEADLINE) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("loading took longer than {LOADING_DEADLINE:?}"))
        }
        Err(RecvTimeoutError::Disconnected) => Err("loading panicked".to_owned()),
    }
}

fn load(model: &Model, options: &LoadOptions) -> Result<Arc<Revision>, String> {
    let bundle = Bundle::read(&model.path).map_err(|error| error.to_string())?;
    check_name(&bundle.version).map_err(|reason| format!("version: {reason}"))?;
    let graphs = bundle.graphs.iter().map(|(name, onnx)| {
        let graph = Graph::load(onnx).map_err(|error| format!("graph `{name}`: {error}"))?;
        Ok((name.clone(), Arc::new(graph)))
    });
    let graphs = Graphs::new(graphs.collect::<Result<_, String>>()?);
    let mut limits = options.limits;
    if let Some(memory_mib) = bundle.limits.memory_mib {
        let most = limits.memory_bytes >> 20;
        if memory_mib == 0 || memory_mib > most {
            return Err(format!(
                "limits.memory_mib is {memory_mib}, expected 1 to {most}, the server's limit"
            ));
        }
        limits.memory_bytes = memory_mib << 20;
    }
    if bundle.limits.deadline_ms == Some(0) {
        return Err("limits.deadline_ms is 0, expected 1 or more".to_owned());
    }
    let (guest, contract) = load_guest(model, &bundle, &graphs, limits, options)?;
    let asked = bundle.limits.deadline_ms.map_or(options.deadline, Duration::from_millis);
    Ok(Arc::new(Revision {
        version: bundle.version,
        contract,
        guest,
        graphs,
        is_bare: bundle.is_bare,
        deadline: asked.min(options.deadline),
        gate: Arc::new(Gate::new(options.concurrency, options.queue)),
    }))
}

/// Takes the compiled guest from the cache, or makes it and puts it there.
fn load_guest(
    model: &Model,
    bundle: &Bundle,
    graphs: &Arc<Graphs>,
    limits: Limits,
    options: &LoadOptions,
) -> Result<(Arc<Guest>, Contract), String> {
    let prepared = Prepared {
        model: model.name.as_str().into(),
        limits,
        graphs: graphs.clone(),
        bundle: Arc::new(bundle.files.clone()),
    };
    let key = cache_key(bundle, limits, &options.engine);
    let cached = options.cache.as_ref().and_then(|cache| cache.get(&key));
    let (code, contract) = match cached {
        Some(Entry { compiled, contract }) => (Code::File(compiled), contract),
        None => {
            let snapshot = block_on(Snapshot::take(&options.engine, &bundle.component, &prepared));
            let snapshot = snapshot.map_err(|error| format!("guest: {error}"))?;
            if let Some(Err(error)) = options.cache.as_ref().map(|cache| cache.put(&key, &snapshot))
            {
                tracing::warn!(model = model.name, "the compiled guest cannot be kept: {error}");
            }
            (Code::Bytes(snapshot.compiled), snapshot.contract)
        }
    };
    // SAFETY: the code was compiled by this program, just now or into the cache, whose folder
    // only this user can write to and whose digests were checked.
    let guest = unsafe { Guest::load(&options.engine, &code, prepared) };
    Ok((guest.map_err(|error| format!("guest: {error}"))?, contract))
}

/// Everything the snapshot may depend on: `prepare` can read assets and settings, and run the
/// graphs.
fn cache_key(bundle: &Bundle, limits: Limits, engine: &Engine) -> CacheKey {
    let counts = [bundle.graphs.len(), bundle.files.assets.len()].map(usize::to_le_bytes).concat();
    let engine = engine.compatibility_hash().to_le_bytes();
    let settings = format!("{:?}", bundle.files.settings);
    let memory = limits.memory_bytes.to_le_bytes();
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let parts = [version, &engine, &memory, &counts, settings.as_bytes(), &bundle.component];
    let files = bundle.graphs.iter().chain(&bundle.files.assets);
    let files = files.flat_map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]);
    CacheKey::of(parts.into_iter().chain(files))
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime
        .expect("a runtime without threads or sockets needs nothing that could be missing")
        .block_on(future)
}
