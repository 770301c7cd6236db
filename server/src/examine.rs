//! The examination of a bundle in a process of its own, which may crash, hang or eat its limits:
//! that is a refusal with a reason, and nothing else. Here is the side that starts it, watches it
//! and believes nothing it says that is not whole; what it does is in `cli::examination`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::param::page_size;
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};
use wisp_engine::{Batches, Candidate, Choice, Verdict};

use crate::bundle::{ContractForm, ManifestLimits};
use crate::cache::Cache;
use crate::confine::{Confinement, Network, Programs, Reach, confine};
use crate::digest::Digest;
use crate::error::{Error, one_line};
use crate::repository::{EngineSettings, guest_key};
use crate::sandbox::ComponentInfo;
use crate::store::{EngineRecord, Staged};

/// Of an examination's report; what is longer is cut and so no report.
const MAX_REPORT_BYTES: u64 = 8 << 20;
const MAX_LOG_BYTES: u64 = 64 << 10;

/// Address space that may be written to beyond the limit on resident memory: allocators take it
/// in large pieces. The one limit catches what the other misses: one huge allocation.
const SLACK_BYTES: u64 = 2 << 30;

/// How often the child's memory is looked at.
const WATCH: Duration = Duration::from_millis(5);

/// What an examination may take.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ExamineLimits {
    pub seconds: u64,
    /// Resident.
    pub memory_bytes: u64,
    /// Whether all that it does not need is taken from it.
    pub confine: bool,
}

/// What the child is told, as JSON on its stdin.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// Root of the OCI layout with the bundle's blobs.
    pub folder: PathBuf,
    pub manifest: Digest,
    pub model: String,
    pub engine: EngineSettings,
    /// Compiled guests that were there before; its own the child keeps apart.
    pub cache: Option<PathBuf>,
    pub limits: ExamineLimits,
    pub runs_tests: bool,
}

/// What the child says, as JSON on its stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With the compatibility of what was compiled.
    Accepted(Box<Report>, u64),
    Refused(String),
}

/// What an examination found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub digest: Digest,
    pub bytes: u64,
    pub contract: ContractForm,
    pub component: ComponentInfo,
    pub graphs: Vec<GraphReport>,
    pub limits: ManifestLimits,
    pub tests: Vec<TestReport>,
    /// To check, prepare, compile and load.
    pub load_ms: u64,
    /// What it takes in memory when it is loaded.
    #[serde(default)]
    pub memory_bytes: u64,
    /// What held the examination in, beside time and memory.
    pub confined_by: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GraphReport {
    pub name: String,
    pub contract: ContractForm,
    pub engine: EngineReport,
}

/// What runs a graph, and what was measured to find that out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineReport {
    pub engine: String,
    /// For people.
    pub reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub candidates: Vec<CandidateReport>,
    /// What was measured of batches, where the manifest asks for them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub batches: Option<BatchesReport>,
}

/// Which batches pay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BatchesReport {
    pub sizes: Vec<usize>,
    /// For people.
    pub reason: String,
}

impl From<Batches> for BatchesReport {
    fn from(Batches { sizes, reason }: Batches) -> Self {
        Self { sizes, reason }
    }
}

/// What came of an engine: figures, or a problem.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CandidateReport {
    pub engine: String,
    /// CPU time of one run of all inputs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load_us: Option<u64>,
    /// From the first engine's answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub difference: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
}

impl Report {
    /// What is kept of the engines, by graph.
    pub fn engines(&self) -> BTreeMap<String, EngineRecord> {
        let record = |graph: &GraphReport| {
            let EngineReport { engine, reason, batches, .. } = graph.engine.clone();
            let (batch_sizes, batching) =
                batches.map(|batches| (batches.sizes, batches.reason)).unzip();
            let batch_sizes = batch_sizes.unwrap_or_default();
            (graph.name.clone(), EngineRecord { engine, reason, batch_sizes, batching })
        };
        self.graphs.iter().map(record).collect()
    }
}

impl From<Choice> for EngineReport {
    fn from(choice: Choice) -> Self {
        let candidates = choice.candidates.into_iter().map(|Candidate { engine, verdict }| {
            let engine = engine.name().to_owned();
            match verdict {
                Verdict::Measured { cpu_us, load_us, difference } => CandidateReport {
                    engine,
                    cpu_us: Some(cpu_us),
                    load_us: Some(load_us),
                    difference: Some(difference),
                    problem: None,
                },
                Verdict::Refused(reason) | Verdict::Failed(reason) | Verdict::Disagrees(reason) => {
                    CandidateReport { engine, problem: Some(reason), ..CandidateReport::default() }
                }
            }
        });
        Self {
            engine: choice.engine.name().to_owned(),
            reason: choice.reason,
            candidates: candidates.collect(),
            batches: None,
        }
    }
}

/// A golden test that passed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TestReport {
    pub input: String,
    /// From what was expected, of any floating-point value.
    pub largest_difference: f64,
    pub elapsed_ms: f64,
}

/// How a bundle is to be examined.
pub struct Examination<'a> {
    /// For what the guest logs.
    pub model: &'a str,
    pub engine: &'a EngineSettings,
    pub limits: ExamineLimits,
    /// Whether the golden tests are run.
    pub runs_tests: bool,
}

impl Examination<'_> {
    /// Examines a staged bundle. Blocks until the child has ended, at most as long as its limit.
    ///
    /// # Errors
    /// The bundle is refused, or there is no child to be had.
    pub fn run(&self, staged: &Staged) -> Result<Report, Error> {
        let Self { model, engine, limits, runs_tests } = *self;
        let own = staged.folder().join("cache");
        // What cannot be opened is not used; the child says so.
        let shared = engine.cache.as_deref().and_then(|folder| Cache::open(folder).ok());
        let cache = shared.as_ref().and_then(|_| Cache::open(&own).ok());
        let job = Job {
            folder: staged.folder().to_owned(),
            manifest: staged.digest().clone(),
            model: model.to_owned(),
            engine: EngineSettings { cache: cache.map(|_| own.clone()), ..engine.clone() },
            cache: engine.cache.clone(),
            limits,
            runs_tests,
        };
        let (report, compatibility) = ask(&job)?;
        if let Some(shared) = shared {
            // Whoever broke out there has written to a folder of his own, of which only this
            // bundle's own guest is taken over.
            let bundle = staged.bundle()?;
            let memory_mib = bundle.limits.memory_mib.map(|memory_mib| memory_mib << 20);
            let memory_bytes = memory_mib.unwrap_or(engine.memory_bytes);
            let engines = report.graphs.iter().map(|graph| &*graph.engine.engine);
            let key = guest_key(&bundle, engines, memory_bytes, compatibility);
            if let Err(error) = shared.adopt(&key, &own) {
                tracing::warn!(model, "the compiled guest cannot be kept: {error}");
            }
        }
        Ok(report)
    }
}

fn ask(job: &Job) -> Result<(Report, u64), Error> {
    let (model, limits) = (&job.model, job.limits);
    let failed = |what: &str, error: io::Error| {
        Error::Internal(format!("the examination cannot be {what}: {error}"))
    };
    let told = serde_json::to_vec(job).map_err(|error| failed("told", error.into()))?;
    // Itself, also where its file has been replaced since.
    let mut child = Command::new("/proc/self/exe")
        .arg0("wisp")
        .arg("examine")
        .env_clear()
        .current_dir(&job.folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("started", error))?;
    let stdout = drain(child.stdout.take(), MAX_REPORT_BYTES);
    let stderr = drain(child.stderr.take(), MAX_LOG_BYTES);
    if let Some(mut stdin) = child.stdin.take() {
        // A child that is gone already is told of below.
        let _ = stdin.write_all(&told);
    }
    let (status, broken) = watch(&mut child, limits).map_err(|error| failed("watched", error))?;
    let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().unwrap_or_default());
    let log = String::from_utf8_lossy(&stderr);
    if !log.is_empty() {
        tracing::debug!(model, "the examination said: {}", one_line(&log));
    }
    if let Some(reason) = broken {
        return Err(Error::BundleRefused(reason));
    }
    match serde_json::from_slice(&stdout) {
        Ok(Outcome::Accepted(report, compatibility))
            if status.success() && report.digest == job.manifest =>
        {
            Ok((*report, compatibility))
        }
        Ok(Outcome::Refused(reason)) if status.success() => Err(Error::BundleRefused(reason)),
        _ => Err(Error::BundleRefused(post_mortem(status, &log, limits))),
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>, limit: u64) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return Vec::new() };
        let mut kept = Vec::new();
        // What breaks off or goes on after the limit is no report, and must not block the child.
        let _ = pipe.by_ref().take(limit).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
        kept
    })
}

/// Waits for the child, and ends it where it is over its limits; then says why.
fn watch(child: &mut Child, limits: ExamineLimits) -> io::Result<(ExitStatus, Option<String>)> {
    let deadline = Instant::now() + Duration::from_secs(limits.seconds);
    let statm = format!("/proc/{}/statm", child.id());
    let mut broken = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, broken));
        }
        let resident = fs::read_to_string(&statm).ok().and_then(|statm| {
            let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
            Some(pages * page_size() as u64)
        });
        if resident.is_some_and(|resident| resident > limits.memory_bytes) {
            broken = Some(over_memory(limits));
        } else if Instant::now() >= deadline {
            broken = Some(format!("the examination took longer than {} s", limits.seconds));
        }
        if broken.is_some() {
            // Gone already, where it fails.
            let _ = child.kill();
            return Ok((child.wait()?, broken));
        }
        thread::sleep(WATCH);
    }
}

fn over_memory(limits: ExamineLimits) -> String {
    format!("the examination needs more than {} MiB of memory", limits.memory_bytes >> 20)
}

fn post_mortem(status: ExitStatus, log: &str, limits: ExamineLimits) -> String {
    if log.contains("memory allocation of") {
        return over_memory(limits);
    }
    let last = log.lines().rfind(|line| !line.trim().is_empty()).map(one_line).unwrap_or_default();
    match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => {
            format!("the examination took more than {} s of CPU", limits.seconds.saturating_mul(4))
        }
        Some(signal) => format!("the examination crashed with signal {signal}: {last}"),
        None => format!("the examination ended without a report ({status}): {last}"),
    }
}

/// Holds this process in, before it touches the bundle; called by the child. Returns what took
/// effect beside the limits.
///
/// # Errors
/// A limit cannot be set.
pub fn hold_in(job: &Job) -> io::Result<Vec<String>> {
    set_limits(job.limits)?;
    let mut effective = Vec::new();
    if leave_network() {
        effective.push("no-network".to_owned());
    }
    let mut confined = Confinement::default();
    if job.limits.confine {
        let library = job.engine.onnxruntime.as_deref().and_then(Path::parent);
        confined = confine(&Reach {
            reads: [Some(job.folder.as_path()), job.cache.as_deref(), library]
                .into_iter()
                .flatten()
                .map(Path::to_owned)
                .collect(),
            writes: job.engine.cache.iter().cloned().collect(),
            scratch: None,
            network: Network::None,
            programs: Programs::None,
        });
    } else if rustix::thread::set_no_new_privs(true).is_ok() {
        effective.push("no-new-privs".to_owned());
    }
    effective.extend(confined.on);
    Ok(effective)
}

fn set_limits(limits: ExamineLimits) -> io::Result<()> {
    // With the server gone, nobody waits for a report.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let set = |resource, most: u64| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    set(Resource::Core, 0)?;
    // Two threads may compile at a time.
    let seconds = limits.seconds.saturating_mul(4);
    // The harder limit kills without a word.
    let cpu = Rlimit { current: Some(seconds), maximum: Some(seconds.saturating_add(5)) };
    rustix::process::setrlimit(Resource::Cpu, cpu)?;
    set(Resource::Data, limits.memory_bytes.saturating_add(SLACK_BYTES))?;
    set(Resource::Fsize, limits.memory_bytes)?;
    Ok(set(Resource::Nofile, 256)?)
}

/// Moves to a network of its own, without a way out. Needs to be root, or user namespaces that
/// the system allows; a server that is held in may not, and its child has no sockets instead.
fn leave_network() -> bool {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only file tables and address spaces shared with other threads make this unsafe;
    // neither is unshared here.
    unsafe {
        unshare_unsafe(UnshareFlags::NEWNET).is_ok()
            || unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET).is_ok()
    }
}
