//! What a bundle is, and what was measured of it where it is deployed.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use wisp_engine::EngineKind;

use super::bundles::{InspectArgs, open, print_contract, sizes_text};
use super::{say, say_json, size};
use crate::bundle::ContractForm;
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Error, one_line};
use crate::examine::Examination;
use crate::store::{EngineRecord, Index, Staged};
use crate::telemetry;

/// A version that is this bundle.
#[derive(Serialize)]
struct Deployed {
    name: String,
    version: String,
    /// What runs each graph, and what was measured.
    engines: BTreeMap<String, EngineRecord>,
}

pub(super) fn inspect(config: &Config, args: InspectArgs) -> anyhow::Result<()> {
    telemetry::start(&config.log, config.log_format)?;
    let opened = open(&args.bundle, &args.registry)?;
    let artifact = &opened.staged.artifact;
    let (head, manifest) = (&artifact.head, &artifact.manifest);
    let signatures = opened.staged.signatures()?.len();
    let contract = contract(config, &opened.staged);
    let deployed = deployed(config, &head.digest)?;
    if args.json {
        let layers = head.layers.iter().map(|layer| {
            json!({"title": layer.title, "media_type": layer.blob.media_type,
                   "digest": layer.blob.digest, "bytes": layer.blob.size})
        });
        return say_json(&json!({
            "digest": head.digest,
            "bytes": head.total_size(),
            "manifest": manifest,
            "component": artifact.component,
            "contract": contract.as_ref().ok(),
            "layers": layers.collect::<Vec<_>>(),
            "signatures": signatures,
            "deployed": deployed,
        }));
    }
    let name = manifest.name.as_deref().unwrap_or("(no name)");
    let version = manifest.version.as_deref().unwrap_or("(numbered at deployment)");
    say(&format!("name        {name}"));
    say(&format!("version     {version}"));
    say(&format!("digest      {}", head.digest));
    say(&format!("size        {}", size(head.total_size())));
    let limit = |value: Option<String>| value.unwrap_or_else(|| "the server's".to_owned());
    let memory = limit(manifest.limits.memory_mib.map(|mib| format!("{mib} MiB")));
    let deadline = limit(manifest.limits.deadline_ms.map(|ms| format!("{ms} ms")));
    say(&format!("limits      memory {memory}, deadline {deadline}"));
    say(&format!("loading     {}", manifest.loading.name()));
    let engine = manifest.engine.named().map_or("auto", EngineKind::name);
    say(&format!("engine      {engine}"));
    for Deployed { name, version, engines } in &deployed {
        let (name, version) = (one_line(name), one_line(version));
        say(&format!("deployed    {name}, version {version}"));
        for (graph, record) in engines {
            let (graph, reason) = (one_line(graph), one_line(&record.reason));
            say(&format!("measured    {graph}: {} ({reason})", record.engine));
            if let Some(reason) = &record.batching {
                let (sizes, reason) = (sizes_text(&record.batch_sizes), one_line(reason));
                say(&format!("measured    {graph}: batches {sizes} ({reason})"));
            }
        }
    }
    say(&format!("tests       {}", manifest.tests.len()));
    match &contract {
        Ok(contract) => print_contract(contract),
        Err(reason) => say(&format!("contract    unknown: {}", one_line(reason))),
    }
    say(&format!("signatures  {signatures}"));
    for layer in &head.layers {
        let (digest, title) = (layer.blob.digest.short(), one_line(&layer.title));
        say(&format!("file        {digest}  {:>10}  {title}", size(layer.blob.size)));
    }
    for (what, names) in
        [("imports", &artifact.component.imports), ("exports", &artifact.component.exports)]
    {
        names.iter().for_each(|name| say(&format!("{what}     {}", one_line(name))));
    }
    Ok(())
}

/// What the manifest declares, else what `prepare` says, in a process that is held in.
fn contract(config: &Config, staged: &Staged) -> Result<ContractForm, String> {
    if let Some(declared) = &staged.artifact.manifest.contract {
        return Ok(declared.clone());
    }
    let examination = Examination {
        model: "model",
        engine: &config.engine,
        limits: config.deploy.examine,
        runs_tests: false,
    };
    examination.run(staged).map(|report| report.contract).map_err(|error| error.to_string())
}

/// The versions of the state folder that are this bundle.
fn deployed(config: &Config, digest: &Digest) -> Result<Vec<Deployed>, Error> {
    let Some(state) = &config.deploy.state else { return Ok(Vec::new()) };
    let models = Index::read(state)?.models;
    let all = models.into_iter().flat_map(|(name, model)| {
        let versions = model.versions.into_iter();
        versions.map(move |(version, record)| (name.clone(), version, record))
    });
    let same = all.filter(|(.., record)| record.digest == *digest);
    Ok(same
        .map(|(name, version, record)| Deployed { name, version, engines: record.engines })
        .collect())
}
