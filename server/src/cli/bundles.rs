//! Bundles as files and in registries: pack, check, unpack, sign, verify, push, pull.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tempfile::TempDir;

use super::{bar, say, say_json, size, spinner};

use crate::bundle::ContractForm;
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Error, one_line};
use crate::examine::{BatchesReport, EngineReport, Examination, Report};
use crate::registry::{Remote, is_reference};
use crate::signature::{PrivateKey, PublicKey, Signature};
use crate::store::{Staged, Staging};
use crate::telemetry;

/// What commands take in, bytes: these are the user's own files.
const LIMIT: u64 = u64::MAX / 4;

#[derive(Args)]
pub(super) struct PackArgs {
    /// A bundle's folder with wisp.toml, or an .onnx file
    #[arg(value_name = "DIR")]
    path: PathBuf,
    /// The file to write [default: NAME.wisp]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct InspectArgs {
    /// A bundle: a folder, an .onnx or .wisp file, an OCI layout, or oci://host/name:tag
    #[arg(value_name = "BUNDLE")]
    pub(super) bundle: String,
    /// Print as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
}

#[derive(Args)]
pub(super) struct UnpackArgs {
    /// A .wisp file, an OCI layout, or oci://host/name:tag
    #[arg(value_name = "BUNDLE")]
    bundle: String,
    /// The folder to make
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Args)]
pub(super) struct SignArgs {
    /// A .wisp file, or oci://host/name:tag
    #[arg(value_name = "BUNDLE")]
    bundle: String,
    /// A P-256 private key: PKCS#8 in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// A .wisp file, an OCI layout, or oci://host/name:tag
    #[arg(value_name = "BUNDLE")]
    bundle: String,
    /// A P-256 public key in PEM, or a folder of such: one of them must have signed
    #[arg(long, value_name = "PATH")]
    key: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Args)]
pub(super) struct PushArgs {
    /// A .wisp file, a bundle's folder, or an OCI layout
    #[arg(value_name = "BUNDLE")]
    path: PathBuf,
    /// Where to: oci://host/name:tag
    reference: String,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Args)]
pub(super) struct PullArgs {
    /// Where from: oci://host/name:tag, or oci://host/name@sha256:…
    reference: String,
    /// The file to write [default: NAME.wisp]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Args)]
pub(super) struct RegistryArgs {
    /// Speak plain HTTP to a registry that is not on this machine
    #[arg(long)]
    plain_http: bool,
}

/// A bundle, and the scratch folder that it lies in.
pub(super) struct Opened {
    pub(super) staged: Staged,
    _scratch: TempDir,
}

pub(super) fn open(bundle: &str, registry: &RegistryArgs) -> anyhow::Result<Opened> {
    let scratch = tempfile::tempdir()?;
    let staging = Staging::new(scratch.path(), LIMIT)?;
    let staged = match is_reference(bundle) {
        true => pull_from(bundle, registry, staging)?,
        false => staging.open(Path::new(bundle)).map_err(|error| named(bundle, error))?,
    };
    Ok(Opened { staged, _scratch: scratch })
}

/// Here nothing is deployed, so nothing refuses: the file is wrong.
pub(super) fn named(bundle: &str, error: Error) -> anyhow::Error {
    match error {
        Error::BundleRefused(reason) if reason.starts_with(bundle) => anyhow::anyhow!("{reason}"),
        Error::BundleRefused(reason) => anyhow::anyhow!("{bundle}: {reason}"),
        other => other.into(),
    }
}

fn pull_from(reference: &str, registry: &RegistryArgs, staging: Staging) -> anyhow::Result<Staged> {
    let remote = Remote::new(reference, registry.plain_http)?;
    let progress = spinner(&format!("pulling {reference}"));
    let pulled = runtime()?.block_on(remote.pull(staging, None, &|bytes| {
        progress.inc(bytes);
        progress.set_message(format!("pulling {reference}: {}", size(progress.position())));
    }));
    progress.finish_and_clear();
    Ok(pulled?)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

pub(super) fn pack(args: PackArgs) -> anyhow::Result<()> {
    let PackArgs { path, out, json } = args;
    let scratch = tempfile::tempdir()?;
    let text = path.display().to_string();
    let packed = Staging::new(scratch.path(), LIMIT)?.pack(&path);
    let staged = packed.map_err(|error| named(&text, error))?;
    let out = out.unwrap_or_else(|| default_file(&staged));
    write(&staged, &out)?;
    let head = &staged.artifact.head;
    match json {
        true => say_json(&json!({"file": out, "digest": head.digest, "bytes": head.total_size()})),
        false => {
            say(&format!("{}  {}  {}", out.display(), head.digest, size(head.total_size())));
            Ok(())
        }
    }
}

fn default_file(staged: &Staged) -> PathBuf {
    let name = staged.artifact.manifest.name.as_deref().unwrap_or("bundle");
    PathBuf::from(format!("{name}.wisp"))
}

/// Writes the bundle's file beside its place first, so that it is there whole or not at all. A
/// pipe or a device is written to as it is; what is replaced keeps its mode.
fn write(staged: &Staged, out: &Path) -> anyhow::Result<()> {
    // Through a link, to what it leads to.
    let out = fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
    let named = || out.display().to_string();
    let replaced = fs::metadata(&out).ok();
    anyhow::ensure!(!out.is_dir(), "{}: expected a file, got a folder", out.display());
    if replaced.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        let file = fs::OpenOptions::new().write(true).open(&out).with_context(named)?;
        return Ok(staged.write_tar(BufWriter::new(file))?);
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let scratch = out.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        let file = fs::File::create_new(&scratch).with_context(|| scratch.display().to_string())?;
        if let Some(replaced) = &replaced {
            file.set_permissions(replaced.permissions())?;
        }
        staged.write_tar(BufWriter::new(&file))?;
        file.sync_all()?;
        fs::rename(&scratch, &out).with_context(named)
    };
    // Already failing: the first error is the one to report.
    write().inspect_err(|_| drop(fs::remove_file(&scratch)))
}

pub(super) fn print_contract(contract: &ContractForm) {
    for (what, specs) in [("input ", &contract.inputs), ("output", &contract.outputs)] {
        for spec in specs {
            say(&format!(
                "{what}      {} {} {:?}",
                one_line(&spec.name),
                spec.datatype,
                spec.shape
            ));
        }
    }
}

pub(super) fn check(config: &Config, args: InspectArgs) -> anyhow::Result<()> {
    telemetry::start(&config.log, config.log_format)?;
    let opened = open(&args.bundle, &args.registry)?;
    let name = opened.staged.artifact.manifest.name.clone().unwrap_or_else(|| "model".to_owned());
    let progress = spinner("examining");
    let examination = Examination {
        model: &name,
        engine: &config.engine,
        limits: config.deploy.examine,
        runs_tests: true,
    };
    let report = examination.run(&opened.staged);
    progress.finish_and_clear();
    let report = report.map_err(|error| named(&args.bundle, error))?;
    match args.json {
        true => say_json(&report)?,
        false => print_report(&report),
    }
    Ok(())
}

/// Sizes of batches for people.
pub(super) fn sizes_text(sizes: &[usize]) -> String {
    match sizes {
        [] => "none".to_owned(),
        _ => sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// A report for people.
pub(super) fn print_report(report: &Report) {
    say(&format!("digest      {}", report.digest));
    say(&format!("size        {}", size(report.bytes)));
    print_contract(&report.contract);
    for graph in &report.graphs {
        let (inputs, outputs) = (graph.contract.inputs.len(), graph.contract.outputs.len());
        say(&format!("graph       {}: inputs {inputs}, outputs {outputs}", one_line(&graph.name)));
        let EngineReport { engine, reason, batches, .. } = &graph.engine;
        say(&format!("engine      {engine} ({})", one_line(reason)));
        if let Some(BatchesReport { sizes, reason }) = batches {
            say(&format!("batches     {} ({})", sizes_text(sizes), one_line(reason)));
        }
    }
    say(&format!("loaded in   {} ms", report.load_ms));
    for test in &report.tests {
        say(&format!(
            "test        {}: passed in {:.1} ms, off by {:.1e} at most",
            one_line(&test.input),
            test.elapsed_ms,
            test.largest_difference
        ));
    }
    if report.tests.is_empty() {
        say("test        none: the manifest has no [[tests]]");
    }
}

pub(super) fn unpack(args: UnpackArgs) -> anyhow::Result<()> {
    let opened = open(&args.bundle, &args.registry)?;
    for path in opened.staged.unpack(&args.out)? {
        say(&path.display().to_string());
    }
    Ok(())
}

pub(super) fn sign(args: SignArgs) -> anyhow::Result<()> {
    let key = PrivateKey::read(&args.key).map_err(anyhow::Error::msg)?;
    let digest = match is_reference(&args.bundle) {
        true => {
            let remote = Remote::new(&args.bundle, args.registry.plain_http)?;
            runtime()?.block_on(async {
                let digest = remote.resolve().await?;
                remote.push_signatures(&digest, vec![Signature::sign(&digest, &key)]).await?;
                Ok::<Digest, Error>(digest)
            })?
        }
        false => {
            let path = Path::new(&args.bundle);
            anyhow::ensure!(path.is_file(), "{}: expected a .wisp file", args.bundle);
            let mut opened = open(&args.bundle, &args.registry)?;
            let digest = opened.staged.digest().clone();
            opened.staged.add_signature(Signature::sign(&digest, &key))?;
            write(&opened.staged, path)?;
            digest
        }
    };
    say(&format!("{}: {digest} is signed", args.bundle));
    Ok(())
}

pub(super) fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let keys = PublicKey::read_all(&args.key).map_err(anyhow::Error::msg)?;
    let opened = open(&args.bundle, &args.registry)?;
    let digest = opened.staged.digest();
    let signatures = opened.staged.signatures()?;
    let by = |key: &&PublicKey| signatures.iter().any(|signature| signature.is_by(key, digest));
    let Some(key) = keys.iter().find(by) else {
        anyhow::bail!(
            "{}: none of its {} signatures is by these keys and over {digest}",
            args.bundle,
            signatures.len()
        );
    };
    say(&format!("{}: {digest} is signed by key {}", args.bundle, key.fingerprint));
    Ok(())
}

pub(super) fn push(args: PushArgs) -> anyhow::Result<()> {
    let remote = Remote::new(&args.reference, args.registry.plain_http)?;
    let path = args.path.to_str().context("the path is not UTF-8")?;
    let opened = open(path, &args.registry)?;
    let progress = bar("pushing", opened.staged.artifact.head.total_size());
    let pushed = runtime()?.block_on(remote.push(&opened.staged, &|bytes| progress.inc(bytes)));
    progress.finish_and_clear();
    say(&pushed?);
    Ok(())
}

pub(super) fn pull(args: PullArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        is_reference(&args.reference),
        "`{}`: expected oci://host/name:tag",
        args.reference
    );
    let opened = open(&args.reference, &args.registry)?;
    let out = args.out.unwrap_or_else(|| default_file(&opened.staged));
    write(&opened.staged, &out)?;
    say(&format!("{}  {}", out.display(), opened.staged.digest()));
    Ok(())
}
