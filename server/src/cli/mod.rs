//! The command line. What each command does is in a file of its kind: serving, bundles and
//! registries, a server's deployments, the examination that runs as a process of its own.

mod admin;
mod bundles;
mod client;
mod confinement;
mod examination;
mod infer;
mod inspect;
mod serve;
mod store;
mod usage;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::config::{Config, DefaultState, RawSettings};
use crate::repository::Place;
use crate::store::Staging;

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
    /// Make a bundle's folder or an .onnx file into one .wisp file
    Pack(bundles::PackArgs),
    /// Say what a bundle is, and what was measured of it where the state folder has it
    Inspect(ExamineArgs),
    /// Examine a bundle as a deployment would: prepare, compile, golden tests
    Check(ExamineArgs),
    /// Write a bundle's files into a new folder
    Unpack(bundles::UnpackArgs),
    /// Sign a bundle, in its file or in a registry
    Sign(bundles::SignArgs),
    /// Verify that one of some keys has signed a bundle
    Verify(bundles::VerifyArgs),
    /// Copy a bundle to a registry
    Push(bundles::PushArgs),
    /// Copy a bundle from a registry
    Pull(bundles::PullArgs),
    /// Deploy a bundle to a running server
    Deploy(admin::DeployArgs),
    /// List what requests have used: CPU, memory, bytes, by model, version and API key
    Usage(usage::UsageArgs),
    /// List a server's models and versions
    List(admin::ListArgs),
    /// Give a version all of its model's traffic
    Promote(admin::PromoteArgs),
    /// Give the traffic back to who had it before
    Rollback(admin::ModelArgs),
    /// Split a model's traffic between versions
    Split(admin::SplitArgs),
    /// Show a part of a model's requests to another version, and compare its answers
    Shadow(admin::ShadowArgs),
    /// Say which versions a client may ask for by name
    Policy(admin::PolicyArgs),
    /// Take a model, or a version of it, out
    Undeploy(admin::UndeployArgs),
    /// Verify a state folder, with no server on it
    Store(store::StoreArgs),
    /// What the server starts to examine a bundle; told by stdin
    #[command(hide = true)]
    Examine,
}

#[derive(Args)]
struct Settings {
    /// TOML file with the settings below
    #[arg(long, env = "WISP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: RawSettings,
}

impl Settings {
    fn check(self, matches: &ArgMatches, log: &str, state: DefaultState) -> anyhow::Result<Config> {
        Config::new(self.settings, matches, self.config.as_deref(), log, state)
    }
}

#[derive(Args)]
struct ServeArgs {
    /// Bundle folders, folders of such, .onnx or .wisp files, served as they are now
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
struct InferArgs {
    /// A bundle: a folder, an .onnx file or a .wisp file
    #[arg(value_name = "MODEL_OR_BUNDLE")]
    path: PathBuf,
    /// The input: a .json file is a request of the protocol, any other the model's one input as
    /// it is; `-` reads stdin
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
struct ExamineArgs {
    #[command(flatten)]
    bundle: bundles::InspectArgs,
    #[command(flatten)]
    settings: Settings,
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
        Command::Serve(ServeArgs { paths, settings }) => {
            let state = if paths.is_empty() { DefaultState::User } else { DefaultState::None };
            return serve::serve(settings.check(matches, "info", state)?, &paths);
        }
        // The answer is on stdout, and stderr is for what goes wrong.
        Command::Infer(InferArgs { path, file, settings }) => {
            infer::infer(&settings.check(matches, "warn", DefaultState::None)?, &path, &file)
        }
        Command::Inspect(ExamineArgs { bundle, settings }) => {
            inspect::inspect(&settings.check(matches, "error", DefaultState::User)?, bundle)
        }
        Command::Check(ExamineArgs { bundle, settings }) => {
            bundles::check(&settings.check(matches, "warn", DefaultState::None)?, bundle)
        }
        Command::Pack(args) => bundles::pack(args),
        Command::Unpack(args) => bundles::unpack(args),
        Command::Sign(args) => bundles::sign(args),
        Command::Verify(args) => bundles::verify(args),
        Command::Push(args) => bundles::push(args),
        Command::Pull(args) => bundles::pull(args),
        Command::Deploy(args) => admin::deploy(args),
        Command::List(args) => admin::list(args),
        Command::Usage(args) => usage::usage(args),
        Command::Promote(args) => admin::promote(args),
        Command::Rollback(args) => admin::rollback(args),
        Command::Split(args) => admin::split(args),
        Command::Shadow(args) => admin::shadow(args),
        Command::Policy(args) => admin::policy(args),
        Command::Undeploy(args) => admin::undeploy(args),
        Command::Store(args) => store::run(args),
        Command::Examine => examination::run(),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a line; a closed stdout is no reason to stop.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
        tracing::debug!("stdout is closed");
    }
}

fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A bar on stderr for `bytes` of long work; nothing where nobody looks.
fn bar(what: &str, bytes: u64) -> ProgressBar {
    let style = "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}";
    draw(ProgressBar::new(bytes), what, style)
}

/// A sign of life on stderr for long work of unknown length.
fn spinner(what: &str) -> ProgressBar {
    let spinner = draw(ProgressBar::new_spinner(), what, "{spinner} {msg} ({elapsed})");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn draw(progress: ProgressBar, what: &str, style: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(style).expect("the templates above are well-formed");
    progress.set_style(style);
    progress.with_message(what.to_owned())
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Paths as they are served: a `.wisp` file is unpacked into `scratch`, and served from there.
/// One that cannot be is told with the reason, and does not stop the others.
fn unpack_all(paths: &[PathBuf], scratch: &Path, limit: u64) -> Vec<Place> {
    let unpacked = paths.iter().enumerate().map(|(number, path)| {
        if path.extension().is_none_or(|extension| extension != "wisp") || !path.is_file() {
            return Place::from(path.clone());
        }
        let staged = Staging::new(scratch, limit).and_then(|staging| staging.open(path));
        let folder = scratch.join(number.to_string());
        match staged.and_then(|staged| staged.unpack(&folder)) {
            Ok(_) => Place::from(folder),
            Err(error) => Place { path: path.clone(), failed: Some(error.to_string()) },
        }
    });
    unpacked.collect()
}

/// Prints rows as columns, each as wide as its widest cell.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    for row in rows {
        let line: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(line.join("  ").trim_end());
    }
}
