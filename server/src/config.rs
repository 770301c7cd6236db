//! Settings: a flag beats its environment variable, that beats the config file, that beats the
//! default. Only this file reads the environment; everything below gets plain values.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use serde::Deserialize;

use crate::bundle::MAX_THREADS;
use crate::examine::ExamineLimits;
use crate::memory;
use crate::repository::{EngineSettings, ResidencyOptions};

/// A petabyte: no budget at all.
const MAX_BUDGET_MIB: usize = 1 << 30;

/// What a run of a graph may take on the smallest machine.
const MIN_GRAPH_MIB: usize = 64;

/// What may be set, by flag, environment variable or config file; the names are the same.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawSettings {
    /// Address to listen on [default: 127.0.0.1:8000]; port 0 takes a free one
    #[arg(long, env = "WISP_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Another address to listen on, for gRPC clients, or `none`: both speak the same
    /// [default: none]
    #[arg(long, env = "WISP_GRPC_LISTEN", value_name = "ADDRESS")]
    grpc_listen: Option<String>,
    /// Whether clients of the protocol may load and unload models, and change trace and log
    /// settings [default: false]
    #[arg(long, env = "WISP_CLIENT_CONTROL", value_name = "BOOL")]
    client_control: Option<bool>,
    /// File with a name and a key a line: who sends none of them as `Authorization: Bearer KEY` is
    /// told nothing but health, and what requests use is counted by name [default: none]
    #[arg(long, env = "WISP_API_KEYS", value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Largest request body, MiB [default: 64]
    #[arg(long, env = "WISP_BODY_LIMIT_MIB", value_name = "MIB")]
    body_limit_mib: Option<usize>,
    /// How long a body may take to arrive, and a client to take its answer, ms [default: 30000]
    #[arg(long, env = "WISP_BODY_TIMEOUT_MS", value_name = "MS")]
    body_timeout_ms: Option<u64>,
    /// Longest time a request may wait and run, ms; a bundle may ask for less [default: 10000]
    #[arg(long, env = "WISP_DEADLINE_MS", value_name = "MS")]
    deadline_ms: Option<u64>,
    /// Most memory a sandbox may have, MiB; a bundle may ask for less [default: 256]
    #[arg(long, env = "WISP_MEMORY_MIB", value_name = "MIB")]
    memory_mib: Option<usize>,
    /// Threads that compute [default: the cores this process may use]
    #[arg(long, env = "WISP_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// Sandboxes that may live at a time [default: 32 for each thread]
    #[arg(long, env = "WISP_SANDBOXES", value_name = "N")]
    sandboxes: Option<usize>,
    /// Whether sandboxes are reset by scanning for written pages, where that is safe
    /// [default: true]; false unmaps them, which takes twice as long
    #[arg(long, env = "WISP_PAGE_SCAN", value_name = "BOOL")]
    page_scan: Option<bool>,
    /// Most memory that one run of a graph may take, MiB [default: a thread's part of half of what
    /// this process may have]
    #[arg(long, env = "WISP_GRAPH_MEMORY_MIB", value_name = "MIB")]
    graph_memory_mib: Option<usize>,
    /// Requests of one model that may run at a time [default: 2 for each thread]
    #[arg(long, env = "WISP_CONCURRENCY", value_name = "N")]
    concurrency: Option<usize>,
    /// Requests of one model that may wait; more are refused [default: 256]
    #[arg(long, env = "WISP_QUEUE", value_name = "N")]
    queue: Option<usize>,
    /// Memory for loaded models and their sandboxes, MiB; beyond it those go cold that were not
    /// used for longest [default: half of what this process may have]
    #[arg(long, env = "WISP_MEMORY_BUDGET_MIB", value_name = "MIB")]
    memory_budget_mib: Option<usize>,
    /// Seconds after which a deployed model that nobody asks for goes cold; 0: never
    /// [default: 600]
    #[arg(long, env = "WISP_IDLE_SECONDS", value_name = "S")]
    idle_seconds: Option<usize>,
    /// Folder for compiled guests, or `none` [default: wisp in the user's cache folder]
    #[arg(long, env = "WISP_CACHE", value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// ONNX Runtime's library (libonnxruntime.so, 1.17 or newer), or `none`: native code that wisp
    /// neither brings nor holds in, as a third engine [default: none]
    #[arg(long, env = "WISP_ONNXRUNTIME", value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Folder for what is deployed, or `none`: then nothing can be [default: wisp in the user's
    /// state folder, and none where PATHs are given]
    #[arg(long, env = "WISP_STATE", value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Folder whose .wisp files are deployed as they appear, change and vanish
    #[arg(long, env = "WISP_MODELS", value_name = "FOLDER")]
    models: Option<PathBuf>,
    /// Address of the admin API, or `none`; any but loopback needs a token
    /// [default: 127.0.0.1:8001]
    #[arg(long, env = "WISP_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// File with the token that the admin API asks for
    #[arg(long, env = "WISP_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Public key, or folder of .pem and .pub files: only bundles that one of them has signed
    /// are taken
    #[arg(long, env = "WISP_TRUSTED_KEYS", value_name = "PATH")]
    trusted_keys: Option<PathBuf>,
    /// Largest bundle, MiB [default: 4096]
    #[arg(long, env = "WISP_BUNDLE_LIMIT_MIB", value_name = "MIB")]
    bundle_limit_mib: Option<usize>,
    /// How long the examination of a bundle may take, seconds [default: 120]
    #[arg(long, env = "WISP_EXAMINE_SECONDS", value_name = "S")]
    examine_seconds: Option<usize>,
    /// Most memory that the examination of a bundle may take, MiB [default: 2048]
    #[arg(long, env = "WISP_EXAMINE_MEMORY_MIB", value_name = "MIB")]
    examine_memory_mib: Option<usize>,
    /// Whether the server gives up all that it does not need of this machine, as far as the
    /// kernel can see to it: files, programs, system calls [default: true]
    #[arg(long, env = "WISP_CONFINE", value_name = "BOOL")]
    confine: Option<bool>,
    /// What is logged: error, warn, info, debug, trace, or a tracing filter [default: info]
    #[arg(long, env = "WISP_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How it is logged: text or json [default: text]
    #[arg(long, env = "WISP_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Where what is deployed lies, if nothing says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultState {
    /// In the user's state folder.
    User,
    None,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// `None`: gRPC is spoken at `listen` only.
    pub grpc_listen: Option<SocketAddr>,
    pub client_control: bool,
    /// `None`: whoever can connect may ask.
    pub api_keys: Option<PathBuf>,
    pub body_timeout: Duration,
    pub threads: usize,
    pub confine: bool,
    pub engine: EngineSettings,
    pub residency: ResidencyOptions,
    pub deploy: DeployConfig,
    pub log: String,
    pub log_format: LogFormat,
    /// Each setting with its value and where that comes from, to be printed.
    pub origins: Vec<(&'static str, String, &'static str)>,
}

/// Settings of what can be deployed, and by whom.
#[derive(Debug, Clone)]
pub struct DeployConfig {
    /// `None`: nothing can be.
    pub state: Option<PathBuf>,
    pub models: Option<PathBuf>,
    /// `None`: there is no admin API.
    pub admin_listen: Option<SocketAddr>,
    pub admin_token: Option<String>,
    pub trusted_keys: Option<PathBuf>,
    pub bundle_limit: u64,
    pub examine: ExamineLimits,
}

impl Config {
    /// Puts flags, environment (both in `flags`, told apart by `matches`) and file together.
    /// `default_log` and `default_state` are the defaults that depend on the command.
    ///
    /// # Errors
    /// The file cannot be read or has unknown keys, or a value is out of range.
    pub fn new(
        flags: RawSettings,
        matches: &ArgMatches,
        file: Option<&Path>,
        default_log: &str,
        default_state: DefaultState,
    ) -> anyhow::Result<Self> {
        let file = match file {
            Some(path) => read_file(path)?,
            None => RawSettings::default(),
        };
        let mut origins = Vec::new();
        macro_rules! pick {
            ($name:ident, $id:literal, $default:expr) => {{
                let (value, origin) = match (flags.$name, file.$name) {
                    (Some(value), _)
                        if matches.value_source(stringify!($name))
                            == Some(ValueSource::EnvVariable) =>
                    {
                        (value, "environment")
                    }
                    (Some(value), _) => (value, "flag"),
                    (None, Some(value)) => (value, "file"),
                    (None, None) => ($default, "default"),
                };
                origins.push(($id, format!("{value:?}").trim_matches('"').to_owned(), origin));
                value
            }};
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let listen = pick!(listen, "listen", SocketAddr::from(([127, 0, 0, 1], 8000)));
        let grpc_listen = pick!(grpc_listen, "grpc-listen", "none".to_owned());
        let client_control = pick!(client_control, "client-control", false);
        let api_keys = pick!(api_keys, "api-keys", PathBuf::from("none"));
        let body_limit_mib = pick!(body_limit_mib, "body-limit-mib", 64);
        let body_timeout_ms = pick!(body_timeout_ms, "body-timeout-ms", 30_000);
        let deadline_ms = pick!(deadline_ms, "deadline-ms", 10_000);
        let memory_mib = pick!(memory_mib, "memory-mib", 256);
        let threads = pick!(threads, "threads", cores);
        let sandboxes = pick!(sandboxes, "sandboxes", threads.saturating_mul(32).min(10_000));
        let page_scan = pick!(page_scan, "page-scan", true);
        let concurrency = pick!(concurrency, "concurrency", threads.saturating_mul(2));
        let queue = pick!(queue, "queue", 256);
        let half = memory::available().map_or(MAX_BUDGET_MIB, |bytes| (bytes >> 21) as usize);
        let part = (half / threads.max(1)).max(MIN_GRAPH_MIB);
        let graph_memory_mib = pick!(graph_memory_mib, "graph-memory-mib", part);
        let memory_budget_mib = pick!(memory_budget_mib, "memory-budget-mib", half.max(1));
        let idle_seconds = pick!(idle_seconds, "idle-seconds", 600);
        let cache = pick!(cache, "cache", user_folder("XDG_CACHE_HOME", ".cache"));
        let onnxruntime = pick!(onnxruntime, "onnxruntime", PathBuf::from("none"));
        let default_state = match default_state {
            DefaultState::User => user_folder("XDG_STATE_HOME", ".local/state"),
            DefaultState::None => PathBuf::from("none"),
        };
        let state = pick!(state, "state", default_state);
        let none = || PathBuf::from("none");
        let models = pick!(models, "models", none());
        let admin_listen = pick!(admin_listen, "admin-listen", "127.0.0.1:8001".to_owned());
        let admin_token_file = pick!(admin_token_file, "admin-token-file", none());
        let trusted_keys = pick!(trusted_keys, "trusted-keys", none());
        let bundle_limit_mib = pick!(bundle_limit_mib, "bundle-limit-mib", 4096);
        let examine_seconds = pick!(examine_seconds, "examine-seconds", 120);
        let examine_memory_mib = pick!(examine_memory_mib, "examine-memory-mib", 2048);
        let confine = pick!(confine, "confine", true);
        let log = pick!(log, "log", default_log.to_owned());
        let log_format = pick!(log_format, "log-format", LogFormat::Text);

        // A body and what it decompresses to are counted together, in 32 bits.
        check("body-limit-mib", body_limit_mib, 1, 2047)?;
        check("body-timeout-ms", body_timeout_ms as usize, 1, 3_600_000)?;
        check("deadline-ms", deadline_ms as usize, 1, 3_600_000)?;
        check("memory-mib", memory_mib, 1, 4096)?;
        check("threads", threads, 1, MAX_THREADS)?;
        check("sandboxes", sandboxes, 1, 10_000)?;
        check("concurrency", concurrency, 1, 10_000)?;
        check("queue", queue, 0, 1_000_000)?;
        check("memory-budget-mib", memory_budget_mib, 1, MAX_BUDGET_MIB)?;
        check("graph-memory-mib", graph_memory_mib, 1, MAX_BUDGET_MIB)?;
        check("idle-seconds", idle_seconds, 0, 1 << 30)?;
        check("bundle-limit-mib", bundle_limit_mib, 1, 1 << 20)?;
        check("examine-seconds", examine_seconds, 1, 3600)?;
        check("examine-memory-mib", examine_memory_mib, 64, 1 << 20)?;
        let some = |path: PathBuf| (path != Path::new("none")).then_some(path);
        let admin_token = some(admin_token_file).map(|path| read_token(&path)).transpose()?;
        let admin_listen = address("admin-listen", &admin_listen)?;
        if let (Some(address), None) = (admin_listen, &admin_token) {
            anyhow::ensure!(
                address.ip().is_loopback(),
                "setting admin-listen: {address} is not loopback, so admin-token-file must name a token"
            );
        }
        let (state, models) = (some(state), some(models));
        anyhow::ensure!(
            models.is_none() || state.is_some(),
            "setting models: what appears there is deployed, which needs a state folder"
        );
        Ok(Self {
            listen,
            grpc_listen: address("grpc-listen", &grpc_listen)?,
            client_control,
            api_keys: some(api_keys),
            body_timeout: Duration::from_millis(body_timeout_ms),
            threads,
            confine,
            engine: EngineSettings {
                memory_bytes: memory_mib << 20,
                graph_bytes: graph_memory_mib << 20,
                sandboxes: u32::try_from(sandboxes).context("setting sandboxes")?,
                page_scan,
                body_limit: body_limit_mib << 20,
                deadline: Duration::from_millis(deadline_ms),
                concurrency,
                queue,
                cache: some(cache).map(absolute).transpose()?,
                onnxruntime: some(onnxruntime).map(absolute).transpose()?,
            },
            residency: ResidencyOptions {
                idle: (idle_seconds > 0).then_some(Duration::from_secs(idle_seconds as u64)),
                budget: (memory_budget_mib as u64) << 20,
            },
            deploy: DeployConfig {
                state,
                models,
                admin_listen,
                admin_token,
                trusted_keys: some(trusted_keys),
                bundle_limit: (bundle_limit_mib as u64) << 20,
                examine: ExamineLimits {
                    seconds: examine_seconds as u64,
                    memory_bytes: (examine_memory_mib as u64) << 20,
                    confine,
                },
            },
            log,
            log_format,
            origins,
        })
    }
}

/// The process that examines works elsewhere.
fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| path.display().to_string())
}

fn read_file(path: &Path) -> anyhow::Result<RawSettings> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("the config file {} cannot be read", path.display()))?;
    toml::from_str(&text).with_context(|| format!("the config file {}", path.display()))
}

fn address(name: &str, address: &str) -> anyhow::Result<Option<SocketAddr>> {
    if address == "none" {
        return Ok(None);
    }
    let parsed = address.parse();
    let expected = || format!("setting {name}: expected an address and port, got {address}");
    parsed.map(Some).with_context(expected)
}

fn check(name: &str, value: usize, least: usize, most: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        (least..=most).contains(&value),
        "setting {name}: expected {least} to {most}, got {value}"
    );
    Ok(())
}

/// A file with one line, which must say something.
pub fn read_token(path: &Path) -> anyhow::Result<String> {
    let token = fs::read_to_string(path)
        .with_context(|| format!("the token file {} cannot be read", path.display()))?;
    let token = token.trim();
    anyhow::ensure!(
        token.len() >= 16 && token.bytes().all(|byte| byte.is_ascii_graphic()),
        "the token file {}: expected 16 or more visible characters",
        path.display()
    );
    Ok(token.to_owned())
}

/// As <https://specifications.freedesktop.org/basedir-spec/> has it.
fn user_folder(variable: &str, below_home: &str) -> PathBuf {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)));
    base.map_or_else(|| PathBuf::from("none"), |base| base.join("wisp"))
}

/// The user's own folder; an empty path where there is none.
pub fn home() -> PathBuf {
    env::var_os("HOME").map(PathBuf::from).unwrap_or_default()
}

/// Files and folders that libraries find by the environment: certificates of registries.
pub fn certificate_paths() -> Vec<PathBuf> {
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| env::var_os(name).unwrap_or_default());
    named.iter().flat_map(env::split_paths).filter(|path| path.is_absolute()).collect()
}

/// Where docker and podman keep credentials: the folder, and the file in it.
pub fn credential_files() -> Vec<(PathBuf, PathBuf)> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let home = |below: &str| variable("HOME").map(|home| home.join(below));
    let docker = variable("DOCKER_CONFIG").or_else(|| home(".docker"));
    let podman = variable("REGISTRY_AUTH_FILE");
    let places = [
        docker.map(|folder| folder.join("config.json")),
        podman,
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        home(".config/containers/auth.json"),
    ];
    let files = places.into_iter().flatten().filter(|file| file.is_absolute());
    files.filter_map(|file| Some((file.parent()?.to_owned(), file))).collect()
}
