//! What is asked of a running server's admin API.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use indicatif::ProgressBar;
use reqwest::{Body, Method};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bundles::{named, print_report, sizes_text};
use super::client::{Server, ServerArgs};
use super::{bar, print_table, say, say_json, size, spinner};
use crate::bundle::Loading;
use crate::deploy::{Deployed, ModelView};
use crate::error::one_line;
use crate::registry::is_reference;
use crate::store::{Policy, Staging};

#[derive(Args)]
pub(super) struct WriteArgs {
    /// Say what would come of it, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub(super) struct DeployArgs {
    /// A bundle: a .wisp file, a folder, an .onnx file, or oci://host/name:tag, which the server
    /// pulls
    #[arg(value_name = "BUNDLE")]
    bundle: String,
    /// The model's name [default: the bundle's]
    #[arg(long)]
    name: Option<String>,
    /// The model's version [default: the bundle's, else the next free number]
    #[arg(long)]
    version: Option<String>,
    /// Give it all traffic at once; a model's first version gets it in any case
    #[arg(long)]
    activate: bool,
    /// Have the server speak plain HTTP to a registry that is not on its machine
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub(super) struct ListArgs {
    /// This model alone
    model: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub(super) struct ModelArgs {
    model: String,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub(super) struct PromoteArgs {
    model: String,
    version: String,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub(super) struct SplitArgs {
    model: String,
    /// As 3=90 4=10; they make 100
    #[arg(required = true, value_name = "VERSION=PERCENT")]
    shares: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub(super) struct ShadowArgs {
    model: String,
    /// As 4=5%, or `none` to end it
    #[arg(value_name = "VERSION=PERCENT")]
    share: String,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub(super) struct PolicyArgs {
    model: String,
    /// all, latest=N or specific=VERSION,…
    policy: String,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args)]
pub(super) struct UndeployArgs {
    model: String,
    /// This version alone
    version: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

pub(super) fn deploy(args: DeployArgs) -> anyhow::Result<()> {
    let DeployArgs { bundle, name, version, activate, plain_http, write } = args;
    let server = Server::new(&write.server)?;
    let mut query = vec![];
    query.extend(name.map(|name| ("name", name)));
    query.extend(version.map(|version| ("version", version)));
    if activate {
        query.push(("activate", "true".to_owned()));
    }
    if write.dry_run {
        query.push(("dry_run", "true".to_owned()));
    }
    let deployed: Deployed = if is_reference(&bundle) {
        let progress = spinner("the server pulls and examines");
        let body = json!({"reference": bundle, "plain_http": plain_http});
        let answer = server.send(server.request(Method::PUT, "bundles").query(&query).json(&body));
        progress.finish_and_clear();
        answer?
    } else {
        let path = Path::new(&bundle);
        // `.` has no name of its own.
        let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
        query.push(("source", name));
        upload(&server, path, &query)?
    };
    if write.server.json {
        return say_json(&deployed);
    }
    if let Some(report) = &deployed.report {
        print_report(report);
    }
    let Deployed { name, version, active, unchanged, dry_run, .. } = &deployed;
    let what = match (dry_run, unchanged) {
        (true, _) => "would be deployed",
        (false, true) => "was deployed already",
        (false, false) => "is deployed",
    };
    let traffic = match active {
        true => "and gets all traffic".to_owned(),
        false => format!("and gets none yet: `wisp promote {name} {version}`"),
    };
    say(&format!("{name} version {version} {what}, {traffic}"));
    Ok(())
}

/// Sends a bundle's file; what is none yet is packed first.
fn upload(
    server: &Server,
    path: &Path,
    query: &[(&'static str, String)],
) -> anyhow::Result<Deployed> {
    let scratch = tempfile::tempdir()?;
    let is_packed = path.is_file() && path.extension().is_none_or(|extension| extension != "onnx");
    let packed = match is_packed {
        true => path.to_owned(),
        false => {
            let staged = Staging::new(scratch.path(), u64::MAX / 4)?.open(path);
            let staged = staged.map_err(|error| named(&path.display().to_string(), error))?;
            let packed = scratch.path().join("bundle.wisp");
            staged.write_tar(File::create(&packed)?)?;
            packed
        }
    };
    let file = File::open(&packed).with_context(|| packed.display().to_string())?;
    let length = file.metadata()?.len();
    let progress = bar("sending", length);
    let shown = progress.clone();
    let pieces = stream::iter(Pieces { file, progress: shown });
    let request = server
        .request(Method::PUT, "bundles")
        .query(query)
        .header("content-type", "application/vnd.oci.image.layout.v1.tar")
        .header("content-length", length)
        .body(Body::wrap_stream(pieces));
    let answer = server.send(request);
    progress.finish_and_clear();
    answer
}

/// A file in pieces.
struct Pieces {
    file: File,
    progress: ProgressBar,
}

impl Iterator for Pieces {
    type Item = std::io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = vec![0; 256 << 10];
        match self.file.read(&mut piece) {
            Ok(0) => {
                self.progress.set_message("the server examines it");
                None
            }
            Ok(count) => {
                piece.truncate(count);
                self.progress.inc(count as u64);
                Some(Ok(piece.into()))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

pub(super) fn list(args: ListArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.server)?;
    let models: Vec<ModelView> = match &args.model {
        Some(model) => vec![server.send(server.request(Method::GET, &model_path(model)?))?],
        None => {
            #[derive(Deserialize)]
            struct Models {
                models: Vec<ModelView>,
            }
            server.send::<Models>(server.request(Method::GET, "models"))?.models
        }
    };
    if args.server.json {
        return say_json(&models);
    }
    print_models(&models);
    Ok(())
}

fn print_models(models: &[ModelView]) {
    let mut rows = vec![
        ["MODEL", "VERSION", "TRAFFIC", "STATE", "MEMORY", "DIGEST", "SIZE", "AGE", "SOURCE"]
            .map(str::to_owned),
    ];
    for model in models {
        for version in &model.versions {
            let shadow = model.shadow.as_ref().filter(|shadow| shadow.version == version.version);
            let traffic = match (shadow, version.traffic) {
                (Some(shadow), 0) => format!("shadow {} %", shadow.percent),
                (_, 0) if !version.available => "hidden".to_owned(),
                (_, percent) => format!("{percent} %"),
            };
            let stored = version.stored.as_ref();
            let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            let loading = stored.map_or(Loading::Pinned, |stored| stored.loading);
            let state = match (&version.reason, version.idle_ms) {
                (Some(reason), _) => format!("{}: {reason}", version.state),
                (None, _) if loading == Loading::Pinned => format!("{}, pinned", version.state),
                (None, Some(idle)) => format!("{} for {} s", version.state, idle / 1000),
                (None, None) => version.state.clone(),
            };
            let is_loaded = matches!(&*version.state, "prepared" | "idle");
            let memory = is_loaded.then(|| size(version.memory_bytes));
            rows.push([
                one_line(&model.name),
                one_line(&version.version),
                traffic,
                one_line(&state),
                text(memory),
                text(stored.map(|stored| stored.digest.short().to_owned())),
                text(stored.map(|stored| size(stored.bytes))),
                text(stored.map(|stored| age(stored.deployed))),
                text(stored.map(|stored| one_line(&stored.source))),
            ]);
        }
    }
    print_table(&rows);
    for version in models.iter().filter(|_| models.len() == 1).flat_map(|model| &model.versions) {
        for (graph, record) in version.stored.iter().flat_map(|stored| &stored.engines) {
            let [version, graph] = [&version.version, graph].map(|name| one_line(name));
            let reason = one_line(&record.reason);
            say(&format!("version {version}, graph {graph}: {} ({reason})", record.engine));
            if let Some(reason) = &record.batching {
                let (sizes, reason) = (sizes_text(&record.batch_sizes), one_line(reason));
                say(&format!("version {version}, graph {graph}: batches {sizes} ({reason})"));
            }
        }
    }
    for model in models {
        if let Some(shadow) = &model.shadow {
            say(&format!(
                "{}: shadow {} was equal {} times, different {}, failed {}, skipped {}",
                one_line(&model.name),
                one_line(&shadow.version),
                shadow.equal,
                shadow.different,
                shadow.failed,
                shadow.skipped
            ));
        }
    }
}

/// Since then, in the largest unit that fits.
fn age(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    match now.saturating_sub(since) {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min", seconds / 60),
        seconds @ ..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

pub(super) fn promote(args: PromoteArgs) -> anyhow::Result<()> {
    let traffic = json!({ args.version: 100 });
    change(&args.write, Method::PUT, &args.model, "/traffic", Some(traffic))
}

pub(super) fn rollback(args: ModelArgs) -> anyhow::Result<()> {
    change(&args.write, Method::POST, &args.model, "/rollback", None)
}

pub(super) fn split(args: SplitArgs) -> anyhow::Result<()> {
    let mut traffic = BTreeMap::new();
    for share in &args.shares {
        let (version, percent) = read_share(share)?;
        anyhow::ensure!(
            traffic.insert(version, percent).is_none(),
            "`{share}`: the version came twice"
        );
    }
    change(&args.write, Method::PUT, &args.model, "/traffic", Some(json!(traffic)))
}

pub(super) fn shadow(args: ShadowArgs) -> anyhow::Result<()> {
    if args.share == "none" {
        return change(&args.write, Method::DELETE, &args.model, "/shadow", None);
    }
    let (version, percent) = read_share(&args.share)?;
    let shadow = json!({"version": version, "percent": percent});
    change(&args.write, Method::PUT, &args.model, "/shadow", Some(shadow))
}

/// Reads `4=10` or `4=10%`.
fn read_share(share: &str) -> anyhow::Result<(String, u8)> {
    let read = share.split_once('=').and_then(|(version, percent)| {
        let percent = percent.strip_suffix('%').unwrap_or(percent).parse().ok()?;
        Some((version.to_owned(), percent)).filter(|(version, _)| !version.is_empty())
    });
    read.with_context(|| format!("`{share}`: expected VERSION=PERCENT, as 4=10"))
}

pub(super) fn policy(args: PolicyArgs) -> anyhow::Result<()> {
    let policy = Policy::parse(&args.policy).map_err(anyhow::Error::msg)?;
    change(&args.write, Method::PUT, &args.model, "/policy", Some(json!(policy)))
}

pub(super) fn undeploy(args: UndeployArgs) -> anyhow::Result<()> {
    let version = args.version.as_deref().map(segment).transpose()?;
    let below = version.map(|version| format!("/versions/{version}")).unwrap_or_default();
    change(&args.write, Method::DELETE, &args.model, &below, None)
}

fn change(
    args: &WriteArgs,
    method: Method,
    model: &str,
    below: &str,
    body: Option<Value>,
) -> anyhow::Result<()> {
    let server = Server::new(&args.server)?;
    let mut request = server.request(method, &format!("{}{below}", model_path(model)?));
    if args.dry_run {
        request = request.query(&[("dry_run", "true")]);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let view: ModelView = server.send(request)?;
    match args.server.json {
        true => say_json(&view),
        false => {
            if args.dry_run {
                say("nothing is changed; it would be:");
            }
            match view.versions.is_empty() {
                true => say(&format!("{model} is not deployed any more")),
                false => print_models(&[view]),
            }
            Ok(())
        }
    }
}

fn model_path(model: &str) -> anyhow::Result<String> {
    Ok(format!("models/{}", segment(model)?))
}

/// A name as a part of a path; what no model can be named would be another path.
fn segment(name: &str) -> anyhow::Result<&str> {
    crate::bundle::check_name(name).map_err(anyhow::Error::msg)?;
    Ok(name)
}
