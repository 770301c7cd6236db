//! From a bundle's contents to a revision that answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wisp_engine::{EngineKind, Graph, OnnxRuntime, with_stack};

use super::graphs;
use super::residency::Charge;
use crate::bundle::{Bundle, ContractForm, Task};
use crate::cache::{Cache, CacheKey, Entry};
use crate::nn::{Batching, Graphs};
use crate::response_cache::ResponseCache;
use crate::sandbox::{Code, Engine, Guest, Limits, PoolOptions, Prepared, Snapshot};
use crate::schedule::{Gate, Runs};
use crate::stats::Stats;
use crate::tensor::Contract;

/// A bundle, ready to answer.
pub struct Revision {
    pub version: String,
    pub contract: Contract,
    pub guest: Arc<Guest>,
    pub graphs: Arc<Graphs>,
    /// Whether the client's tensors reach the graph as they are.
    pub passthrough: bool,
    pub deadline: Duration,
    /// Of CPU time; `None`: what fits before the deadline.
    pub cpu_limit: Option<Duration>,
    /// Threads that may help the one that runs one of its graphs.
    pub helpers: usize,
    /// Of a request's body, bytes.
    pub body_limit: usize,
    pub gate: Arc<Gate>,
    /// Answers given before, where the manifest asks for it.
    pub response_cache: Option<ResponseCache>,
    pub stats: Arc<Stats>,
    pub task: Option<Task>,
    /// The names of an output's classes, by output.
    pub labels: BTreeMap<String, Vec<String>>,
    /// What it takes of the memory that models may have.
    pub charge: Charge,
    /// When it was last used, ms since [`START`].
    used_ms: AtomicU64,
}

/// What [`Revision::used_ms`] is counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Revision {
    /// Notes that it is used now.
    pub fn touch(&self) {
        self.used_ms.store(START.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Since it was last used.
    pub fn idle_for(&self) -> Duration {
        let used = Duration::from_millis(self.used_ms.load(Ordering::Relaxed));
        START.elapsed().saturating_sub(used)
    }
}

/// What an engine is made of, in plain values: an examination makes the same one in its own
/// process, so that what it compiles fits here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineSettings {
    pub memory_bytes: usize,
    pub graph_bytes: usize,
    pub sandboxes: u32,
    pub page_scan: bool,
    pub body_limit: usize,
    pub deadline: Duration,
    pub concurrency: usize,
    pub queue: usize,
    /// `None`: compiled guests and plans are not kept.
    pub cache: Option<PathBuf>,
    /// ONNX Runtime's library, where the operator names one.
    pub onnxruntime: Option<PathBuf>,
}

/// What loading needs besides the bundles.
#[derive(Clone)]
pub struct LoadOptions {
    pub engine: Arc<Engine>,
    /// `None`: every start compiles anew.
    pub cache: Option<Cache>,
    /// And where compiled plans of graphs are kept.
    pub plans: Option<Cache>,
    /// For bundles that set none.
    pub limits: Limits,
    /// The longest deadline; a bundle may ask for a shorter one.
    pub deadline: Duration,
    /// Requests of one model that run, and that wait, at a time.
    pub concurrency: usize,
    pub queue: usize,
    /// Of a request's body; a bundle may ask for less.
    pub body_limit: usize,
}

impl LoadOptions {
    /// Makes the engine and opens the cache.
    ///
    /// # Errors
    /// A text: this machine cannot run wasmtime.
    pub fn new(settings: &EngineSettings) -> Result<Self, String> {
        let pool = PoolOptions {
            slots: settings.sandboxes,
            max_memory_bytes: settings.memory_bytes,
            page_scan: settings.page_scan,
        };
        let engine = Engine::new(pool)
            .map_err(|error| format!("the Wasm engine cannot start: {error:#}"))?;
        if let Some(library) = &settings.onnxruntime {
            // SAFETY: the operator says that it is ONNX Runtime, and asked for it.
            unsafe { OnnxRuntime::open(library) }
                .map_err(|error| format!("ONNX Runtime at {}: {error}", library.display()))?;
        }
        let cache = settings.cache.as_deref().and_then(|folder| {
            let opened = Cache::open(folder);
            opened.inspect_err(|error| tracing::warn!("compiled guests are not kept: {error}")).ok()
        });
        let limits = Limits {
            memory_bytes: settings.memory_bytes,
            tensor_bytes: settings.memory_bytes,
            graph_bytes: settings.graph_bytes,
            // A body as a tensor, with what surrounds it; JSON grows when it is decoded.
            hostcall_bytes: settings.body_limit.max(64 << 20) * 4,
            ..Limits::default()
        };
        Ok(Self {
            engine,
            plans: cache.clone(),
            cache,
            limits,
            deadline: settings.deadline,
            concurrency: settings.concurrency,
            queue: settings.queue,
            body_limit: settings.body_limit,
        })
    }
}

/// Loads the graphs and the guest, from the cache or by running its `prepare`. Blocks. `charge`
/// becomes what it took.
///
/// # Errors
/// A text for the operator: which part cannot be served, and why.
pub fn load(
    model: &str,
    version: &str,
    bundle: &Bundle,
    options: &LoadOptions,
    stats: Arc<Stats>,
    mut charge: Charge,
) -> Result<Arc<Revision>, String> {
    // Engines go deep; and what is allocated on a thread of their own would not be counted.
    let loaded = with_stack(|| load_parts(model, version, bundle, options));
    let loaded = loaded.map_err(|error| error.to_string())?;
    let Parts { graphs, guest, contract, labels, concurrency, heap_bytes } = loaded?;
    let response_cache =
        bundle.response_cache.map(|setting| ResponseCache::new(setting.max_mib << 20));
    let cache_bytes = response_cache.as_ref().map_or(0, ResponseCache::most_bytes);
    let woken = bundle.graphs.keys().filter_map(|name| graphs.get(name));
    let plan_bytes: usize = woken.map(Graph::plan_bytes).sum();
    charge.set(heap_bytes + guest.code_bytes() + (cache_bytes + plan_bytes) as u64);
    let limits = &bundle.limits;
    let asked = limits.deadline_ms.map_or(options.deadline, Duration::from_millis);
    let concurrency = limits.concurrency.map_or(concurrency, |most| most.min(concurrency));
    let queue = limits.queue.map_or(options.queue, |most| most.min(options.queue));
    let helpers = limits.threads.map_or(0, |threads| threads.saturating_sub(1));
    let runs = Runs { are_helped: helpers > 0, are_batched: bundle.batching.is_some() };
    let body_limit = limits.body_kib.map_or(options.body_limit, |kib| kib << 10);
    let revision = Revision {
        version: version.to_owned(),
        contract,
        guest,
        graphs,
        passthrough: bundle.passthrough,
        deadline: asked.min(options.deadline),
        cpu_limit: limits.cpu_ms.map(Duration::from_millis),
        helpers,
        body_limit: body_limit.min(options.body_limit),
        gate: Arc::new(Gate::new(concurrency, queue, runs)),
        response_cache,
        stats,
        task: bundle.task,
        labels,
        charge,
        used_ms: AtomicU64::new(0),
    };
    revision.touch();
    Ok(Arc::new(revision))
}

/// The server's limits, or less where the manifest says so.
fn limits_of(bundle: &Bundle, server: Limits) -> Result<Limits, String> {
    let within = |name: &str, asked: Option<usize>, most: usize| match asked {
        None => Ok(None),
        Some(mib) if (1..=most >> 20).contains(&mib) => Ok(Some(mib << 20)),
        Some(mib) => {
            Err(format!("limits.{name} is {mib}, expected 1 to {}, the server's limit", most >> 20))
        }
    };
    let asked = &bundle.limits;
    let memory = within("memory_mib", asked.memory_mib, server.memory_bytes)?;
    let tensors = within("tensor_mib", asked.tensor_mib, server.memory_bytes)?;
    let graph = within("graph_mib", asked.graph_mib, server.graph_bytes)?;
    Ok(Limits {
        memory_bytes: memory.unwrap_or(server.memory_bytes),
        tensor_bytes: tensors.or(memory).unwrap_or(server.tensor_bytes),
        graph_bytes: graph.unwrap_or(server.graph_bytes),
        ..server
    })
}

/// What takes the memory of a revision.
struct Parts {
    graphs: Arc<Graphs>,
    guest: Arc<Guest>,
    contract: Contract,
    labels: BTreeMap<String, Vec<String>>,
    concurrency: usize,
    /// Of graphs and guest.
    heap_bytes: u64,
}

fn load_parts(
    model: &str,
    version: &str,
    bundle: &Bundle,
    options: &LoadOptions,
) -> Result<Parts, String> {
    let graphs = bundle.graphs.iter().map(|(name, onnx)| {
        let graph = graphs::load(name, onnx, &engines_for(bundle, name), options.plans.as_ref())
            .map_err(|error| format!("graph `{name}`: {error}"))?;
        if let Some(decided) =
            bundle.engines.get(name).filter(|&&decided| decided != graph.engine())
        {
            let engine = graph.engine();
            tracing::warn!(
                model,
                version,
                "graph `{name}` was to be run by {decided}, which cannot load it: {engine} does"
            );
        }
        Ok((name.clone(), graph, batching(bundle, name)))
    });
    let (graphs, graph_bytes) =
        wisp_engine::memory::kept(|| graphs.collect::<Result<Vec<_>, String>>());
    let graphs = graphs?;
    // While one batch runs, another may gather.
    let batch = graphs.iter().filter_map(|(.., batching)| batching.as_ref()?.sizes.last()).max();
    let concurrency = options.concurrency.max(batch.map_or(0, |size| 2 * size));
    let graphs = Graphs::new(graphs);
    let limits = limits_of(bundle, options.limits)?;
    // Counted by itself: threads that compile allocate what this one frees.
    let (guest, guest_bytes) =
        wisp_engine::memory::kept(|| load_guest(model, bundle, &graphs, limits, options));
    let (guest, contract) = guest?;
    if let Some(declared) = bundle.contract.clone() {
        compare(&declared.read().map_err(|reason| format!("contract: {reason}"))?, &contract)?;
    }
    bundle.task.map_or(Ok(()), |task| task.check(&contract))?;
    let labels = read_labels(bundle, &contract)?;
    let heap_bytes = graph_bytes + guest_bytes;
    Ok(Parts { graphs, guest, contract, labels, concurrency, heap_bytes })
}

/// How a graph's computes are batched: as was measured, where the manifest asks for it.
fn batching(bundle: &Bundle, graph: &str) -> Option<Batching> {
    let setting = bundle.batching.as_ref()?;
    let sizes = bundle.batch_sizes.get(graph).filter(|sizes| !sizes.is_empty())?.clone();
    Some(Batching { sizes, delay: Duration::from_micros(setting.max_queue_delay_us) })
}

/// The engines to try a graph with, in order.
fn engines_for(bundle: &Bundle, graph: &str) -> Vec<EngineKind> {
    if let Some(named) = bundle.engine.named() {
        return vec![named];
    }
    // The engine that was decided for first; the others where it is not to be had any more.
    let decided = bundle.engines.get(graph);
    let mut engines = EngineKind::available();
    engines.retain(|engine| Some(engine) != decided);
    decided.copied().into_iter().chain(engines).collect()
}

fn read_labels(
    bundle: &Bundle,
    contract: &Contract,
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let labels = bundle.labels.iter().map(|(output, file)| {
        if contract.outputs.iter().all(|spec| spec.name != *output) {
            return Err(format!("labels: the model has no output `{output}`"));
        }
        let asset = bundle.files.assets.get(file);
        let asset = asset.ok_or_else(|| format!("labels: there is no asset `{file}`"))?;
        let text = str::from_utf8(asset.bytes()?)
            .map_err(|_| format!("labels: asset `{file}` is not UTF-8 text"))?;
        Ok((output.clone(), text.lines().map(str::to_owned).collect()))
    });
    labels.collect()
}

fn compare(declared: &Contract, found: &Contract) -> Result<(), String> {
    if declared == found {
        return Ok(());
    }
    let text = |contract: &Contract| {
        serde_json::to_string(&ContractForm::from(contract)).unwrap_or_default()
    };
    Err(format!("the manifest's contract is {}, the guest's is {}", text(declared), text(found)))
}

/// Takes the compiled guest from the cache, or makes it and puts it there.
fn load_guest(
    model: &str,
    bundle: &Bundle,
    graphs: &Arc<Graphs>,
    limits: Limits,
    options: &LoadOptions,
) -> Result<(Arc<Guest>, Contract), String> {
    let prepared = Prepared {
        model: model.into(),
        limits,
        graphs: graphs.clone(),
        bundle: Arc::new(bundle.files.clone()),
    };
    let engines = bundle.graphs.keys().filter_map(|name| Some(graphs.get(name)?.engine().name()));
    let memory_bytes = limits.memory_bytes;
    let key = guest_key(bundle, engines, memory_bytes, options.engine.compatibility_hash());
    let cached = options.cache.as_ref().and_then(|cache| cache.get(&key));
    let (code, contract) = match cached {
        Some(Entry { compiled, contract }) => (Code::File(compiled), contract),
        None => {
            let component = bundle.component.bytes()?;
            let snapshot = block_on(Snapshot::take(&options.engine, component, &prepared));
            let snapshot = snapshot.map_err(|error| format!("guest: {error}"))?;
            if let Some(Err(error)) = options.cache.as_ref().map(|cache| cache.put(&key, &snapshot))
            {
                tracing::warn!(model, "the compiled guest cannot be kept: {error}");
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
/// graphs, by these engines; `compatibility` is [`Engine::compatibility_hash`].
pub fn guest_key<'a>(
    bundle: &Bundle,
    engines: impl Iterator<Item = &'a str>,
    memory_bytes: usize,
    compatibility: u64,
) -> CacheKey {
    let counts = [bundle.graphs.len(), bundle.files.assets.len()].map(usize::to_le_bytes).concat();
    let engine = compatibility.to_le_bytes();
    let engines = engines.collect::<Vec<_>>().join(" ");
    let settings = format!("{:?}", bundle.files.settings);
    let memory = memory_bytes.to_le_bytes();
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let component = bundle.component.digest().hex().as_bytes();
    let parts = [version, &engine, &memory, &counts, settings.as_bytes(), component];
    let files = bundle.graphs.iter().chain(&bundle.files.assets);
    let files = files.flat_map(|(name, file)| [name.as_bytes(), file.digest().hex().as_bytes()]);
    CacheKey::of(parts.into_iter().chain(files).chain([engines.as_bytes()]))
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime
        .expect("a runtime without threads or sockets needs nothing that could be missing")
        .block_on(future)
}
