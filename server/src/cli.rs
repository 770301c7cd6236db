//! The command line: `wisp serve` and `wisp infer`.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, Api, ApiOptions};
use crate::config::{Config, RawSettings};
use crate::error::one_line;
use crate::repository::{LoadOptions, Repository, State};
use crate::sandbox::Engine;
use crate::{set_up, telemetry};

/// Serves small ML models on CPUs, each request in a fresh Wasm sandbox.
#[derive(Parser)]
#[command(name = "wisp", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve models over HTTP
    Serve(ServeArgs),
    /// Run one input through a model, without a server; prints the answer as JSON
    Infer(InferArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// Bundle folders, folders of such, or .onnx files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// TOML file with the settings below
    #[arg(long, env = "WISP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: RawSettings,
}

#[derive(Args)]
struct InferArgs {
    /// A bundle folder or an .onnx file
    #[arg(value_name = "MODEL_OR_BUNDLE")]
    path: PathBuf,
    /// The input: a .json file is a request of the protocol, any other the model's one input as
    /// it is; `-` reads stdin
    file: PathBuf,
    /// TOML file with the settings below
    #[arg(long, env = "WISP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: RawSettings,
}

/// Runs the command line of this process.
///
/// # Errors
/// Something that the user must mend, in one line.
pub fn run() -> anyhow::Result<ExitCode> {
    // By hand instead of `Cli::parse`, as the config wants to know flag from environment.
    let matches = Cli::command().get_matches();
    let Cli { command } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let (_, matches) = matches.subcommand().context("a command is required")?;
    match command {
        Command::Serve(ServeArgs { paths, config, settings }) => {
            serve(Config::new(settings, matches, config.as_deref(), "info")?, &paths)
        }
        // The answer is on stdout, and stderr is for what goes wrong.
        Command::Infer(InferArgs { path, file, config, settings }) => {
            infer(&Config::new(settings, matches, config.as_deref(), "warn")?, &path, &file)
        }
    }
}

fn serve(config: Config, paths: &[PathBuf]) -> anyhow::Result<ExitCode> {
    telemetry::start(&config.log, config.log_format)?;
    for (name, value, origin) in &config.origins {
        tracing::info!("setting {name} = {value} ({origin})");
    }
    let (inference, options) = set_up(&config, paths)?;
    // One more than can compute inline: there is always a thread to accept and to answer health.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads + 1)
        .thread_name("wisp-http")
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
        say(&format!(
            "wisp {} listening on http://{}",
            env!("CARGO_PKG_VERSION"),
            listener.local_addr()?
        ));

        let engine = options.engine.clone();
        // The thread that waits for the network may be the one that runs a request inline: then
        // nobody waits for it any more. Anything to do wakes another thread, which takes over.
        let http = tokio::runtime::Handle::current();
        engine.on_tick(move || drop(http.spawn(async {})));
        let loader = inference.clone();
        thread::Builder::new()
            .name("wisp-load".into())
            .spawn(move || load(&loader.repository, &options))?;

        let limits =
            ApiOptions { body_limit: config.body_limit, body_timeout: config.body_timeout };
        let router = Api::new(inference.clone(), limits).router();
        let unsafe_now = watch_isolation(engine.clone());
        let mut exit = ExitCode::SUCCESS;
        let shutdown = async {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
                () = unsafe_now => exit = ExitCode::FAILURE,
            }
            tracing::info!("stopping: requests in flight finish");
        };
        let drain = config.body_timeout + config.deadline;
        api::serve(listener, router, shutdown, drain).await;
        // A compute that outlived its request ends at its next node.
        let drained = async {
            while engine.live_sandboxes() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let late = tokio::time::timeout(Duration::from_secs(5), drained).await.is_err();
        tracing::info!(late, live_sandboxes = engine.live_sandboxes(), "stopped");
        Ok(exit)
    })
}

/// Completes when sandboxes can no longer be reset safely: swap was turned on. A restart takes
/// the safe way; serving on does not.
async fn watch_isolation(engine: Arc<Engine>) {
    while engine.is_isolation_intact() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tracing::error!(
        "swap was turned on: memory swapped out could be read by another request, so the server stops; start it again"
    );
}

fn load(repository: &Repository, options: &LoadOptions) {
    repository.load(options);
    say(table(repository).trim_end());
}

/// A line of models, versions and states, as `READY` or `FAILED  reason`.
fn table(repository: &Repository) -> String {
    let width =
        repository.models().iter().map(|model| model.name.len()).max().unwrap_or(0).clamp(5, 64);
    let mut table = format!("{:width$}  STATE\n", "MODEL");
    for model in repository.models() {
        let state = match model.state() {
            State::Loading => "LOADING".to_owned(),
            State::Ready => "READY".to_owned(),
            State::Failed(reason) => format!("FAILED  {reason}"),
        };
        table.push_str(&format!("{:width$}  {state}\n", one_line(&model.name)));
    }
    table
}

/// Prints a line; a closed stdout is no reason to stop serving.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
        tracing::debug!("stdout is closed");
    }
}

fn infer(config: &Config, path: &Path, file: &Path) -> anyhow::Result<ExitCode> {
    telemetry::start(&config.log, config.log_format)?;
    let mut input = Vec::new();
    match file == Path::new("-") {
        true => drop(std::io::stdin().read_to_end(&mut input).context("stdin")?),
        false => input = fs::read(file).with_context(|| file.display().to_string())?,
    }
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let (inference, options) = set_up(config, &[path.to_owned()])?;
    let [model] = inference.repository.models() else {
        anyhow::bail!(
            "{}: expected one bundle, got {}",
            path.display(),
            inference.repository.models().len()
        );
    };
    inference.repository.load(&options);
    if let State::Failed(reason) = model.state() {
        anyhow::bail!("model `{}`: {reason}", model.name);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(api::infer_once(&inference, model, input, is_json))?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&answer).and_then(|()| writeln!(stdout)).context("stdout")?;
    Ok(ExitCode::SUCCESS)
}
