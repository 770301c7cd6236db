//! The examination itself, in a process that is held in and may die of it: everything that a
//! server will do with the bundle is done here first.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use wisp_engine::{EngineKind, Graph, Inputs, choose, generated, measure_batches};

use crate::api::check_golden;
use crate::bundle::{Artifact, Bundle, Content, ContractForm, Head};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::Error;
use crate::examine::{EngineReport, GraphReport, Job, Outcome, Report, TestReport, hold_in};
use crate::infer::Inference;
use crate::repository::{Charge, LoadOptions, Repository, ResidencyOptions, Revision, load};
use crate::schedule::Scheduler;
use crate::store::{Blobs, bundle_of};
use crate::telemetry;

/// How far the answers of two engines may be apart, relative to the largest of them.
const AGREEMENT: f64 = 1e-3;

/// Reads a job from stdin, does it, and writes what came of it to stdout.
///
/// # Errors
/// There is no job, or this process cannot be held in: nothing was examined.
pub(super) fn run() -> anyhow::Result<()> {
    let mut job = Vec::new();
    io::stdin().read_to_end(&mut job)?;
    let job: Job = serde_json::from_slice(&job)
        .context("`wisp examine` is for wisp itself: see `wisp check`")?;
    let confined_by = hold_in(&job).context("the examination cannot be held in")?;
    telemetry::start("warn", crate::config::LogFormat::Text)?;
    let outcome = match examine(&job, confined_by) {
        Ok((report, compatibility)) => Outcome::Accepted(Box::new(report), compatibility),
        Err(reason) => Outcome::Refused(reason),
    };
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &outcome)?;
    Ok(stdout.flush()?)
}

fn examine(job: &Job, confined_by: Vec<String>) -> Result<(Report, u64), String> {
    let (artifact, mut bundle) = read(job)?;
    let options = LoadOptions::new(&job.engine)?;
    // Plans are made by whom they serve.
    let cache = options.cache.clone().map(|own| job.cache.iter().cloned().fold(own, Cache::before));
    let options = LoadOptions { cache, plans: None, ..options };
    let compatibility = options.engine.compatibility_hash();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // One request at a time: nobody waits.
    let scheduler = Scheduler::new(cores, job.engine.sandboxes as usize, || {});
    let scheduler = scheduler.map_err(|error| format!("threads cannot be started: {error}"))?;
    let version = bundle.version.clone().unwrap_or_default();
    let patience = options.deadline;
    let residency = ResidencyOptions { idle: None, budget: u64::MAX };
    let repository = Repository::find(&[], options.clone(), residency, patience);
    let inference = Inference::new(repository, scheduler, Arc::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let try_with = |bundle: &Bundle| {
        let started = Instant::now();
        let revision =
            load(&job.model, &version, bundle, &options, Arc::default(), Charge::none())?;
        let load_ms = started.elapsed().as_millis() as u64;
        let graphs = bundle.graphs.keys().filter_map(|name| revision.graphs.get(name));
        graphs.for_each(|graph| graph.record());
        let mut tests = Vec::new();
        for golden in bundle.tests.iter().filter(|_| job.runs_tests) {
            let started = Instant::now();
            let checked = runtime.block_on(check_golden(&inference, &job.model, &revision, golden));
            let largest_difference =
                checked.map_err(|reason| format!("golden test `{}`: {reason}", golden.name))?;
            let elapsed_ms = started.elapsed().as_secs_f64() * 1000.0;
            tests.push(TestReport { input: golden.name.clone(), largest_difference, elapsed_ms });
        }
        Ok(Tried { revision, tests, load_ms })
    };
    let mut tried = try_engines(&mut bundle, try_with)?;
    let mut engines = engines_of(job, &bundle, &tried);
    let chosen: BTreeMap<String, EngineKind> = engines
        .iter()
        .filter_map(|(name, report)| Some((name.clone(), EngineKind::parse(&report.engine)?)))
        .collect();
    let others = |name: &String| tried.revision.graphs.get(name).map(Graph::engine);
    if chosen.iter().any(|(name, engine)| others(name) != Some(*engine)) {
        // What serves is what is examined.
        bundle.engines = chosen;
        match try_with(&bundle) {
            Ok(again) => tried = again,
            Err(reason) => {
                for (name, report) in &mut engines {
                    let Some(engine) = others(name) else { continue };
                    let taken = std::mem::replace(&mut report.engine, engine.name().to_owned());
                    if taken != report.engine {
                        report.reason = format!("{}; with {taken}: {reason}", report.reason);
                    }
                }
            }
        }
    }
    let Tried { revision, tests, load_ms } = tried;
    let graphs = engines.into_iter().filter_map(|(name, mut engine)| {
        let graph = revision.graphs.get(&name)?;
        let batching = bundle.batching.as_ref().filter(|_| job.runs_tests);
        engine.batches = batching.map(|setting| {
            let memory = revision.guest.limits().graph_bytes;
            let sizes = setting.sizes();
            measure_batches(graph, memory, &inputs_of(graph), &sizes, AGREEMENT).into()
        });
        Some(GraphReport { contract: ContractForm::from(graph.contract()), name, engine })
    });
    let report = Report {
        digest: job.manifest.clone(),
        bytes: artifact.head.total_size(),
        contract: ContractForm::from(&revision.contract),
        component: artifact.component.clone(),
        graphs: graphs.collect(),
        limits: bundle.limits,
        tests,
        load_ms,
        memory_bytes: revision.charge.bytes(),
        confined_by,
    };
    Ok((report, compatibility))
}

/// What came of loading and testing a bundle.
struct Tried {
    revision: Arc<Revision>,
    tests: Vec<TestReport>,
    load_ms: u64,
}

/// Tries the bundle with the engines in order, until its golden tests pass. An engine that is
/// not the first is tried for all graphs at once.
fn try_engines<T>(
    bundle: &mut Bundle,
    try_with: impl Fn(&Bundle) -> Result<T, String>,
) -> Result<T, String> {
    let first = try_with(bundle);
    let Err(reason) = first else { return first };
    if bundle.engine.named().is_some() {
        return Err(reason);
    }
    for engine in EngineKind::available().into_iter().skip(1) {
        bundle.engines = bundle.graphs.keys().map(|graph| (graph.clone(), engine)).collect();
        if let Ok(passed) = try_with(bundle) {
            return Ok(passed);
        }
    }
    Err(reason)
}

/// By graph, the engine to serve it: measured, where the manifest leaves it open.
fn engines_of(job: &Job, bundle: &Bundle, tried: &Tried) -> BTreeMap<String, EngineReport> {
    let measures = job.runs_tests && bundle.engine.named().is_none();
    let engines = bundle.graphs.iter().filter_map(|(name, onnx)| {
        let graph = tried.revision.graphs.get(name)?;
        let report = match measures {
            true => decide(onnx, graph),
            false => taken(graph),
        };
        Some((name.clone(), report))
    });
    engines.collect()
}

/// Measures the engines on what the golden tests gave the graph, or on what its contract lets
/// one make up. The engine whose answers were tested is the reference.
fn decide(onnx: &Content, graph: &Graph) -> EngineReport {
    let mut engines = EngineKind::available();
    engines.sort_by_key(|engine| *engine != graph.engine());
    let is_tested = !graph.recorded().is_empty();
    // It was loaded just now; should it not be again, there is nothing to choose.
    onnx.bytes()
        .ok()
        .and_then(|onnx| choose(onnx, &engines, &inputs_of(graph), AGREEMENT, is_tested).ok())
        .map_or_else(|| taken(graph), EngineReport::from)
}

/// What the golden tests gave the graph; made up where there are none.
fn inputs_of(graph: &Graph) -> Vec<Inputs> {
    let mut inputs = graph.recorded();
    if inputs.is_empty() {
        inputs.extend(generated(graph.contract()));
    }
    inputs
}

fn taken(graph: &Graph) -> EngineReport {
    EngineReport {
        engine: graph.engine().name().to_owned(),
        reason: "not measured".to_owned(),
        candidates: Vec::new(),
        batches: None,
    }
}

/// Reads the bundle, its digests once more.
fn read(job: &Job) -> Result<(Artifact, Bundle), String> {
    let text = |error: Error| error.to_string();
    let blobs = Blobs::at(&job.folder).map_err(text)?;
    let whole = |digest: &Digest| {
        let content = blobs.map(digest).map_err(text)?;
        match Digest::of(&content) {
            actual if actual == *digest => Ok(content),
            actual => Err(format!("the blob {digest} has the content of {actual}")),
        }
    };
    let head = Head::read(&whole(&job.manifest)?, u64::MAX)?;
    let config = whole(&head.config.digest)?;
    let artifact = Artifact::read(head, &config)?;
    let bundle = bundle_of(&artifact, &blobs).map_err(text)?;
    bundle.contents().try_for_each(|content| content.bytes().map(drop))?;
    Ok((artifact, bundle))
}
