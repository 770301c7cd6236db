//! wisp: serves small ML models on CPUs, each request in a fresh Wasm sandbox.
//!
//! The binary is a thin shell around this library; ARCHITECTURE.md is the map. Read one request
//! along `api` → `infer` → `sandbox` → `nn`.

pub mod api;
pub mod bundle;
pub mod cache;
pub mod cli;
pub mod config;
pub mod error;
pub mod infer;
pub mod nn;
pub mod repository;
pub mod sandbox;
pub mod schedule;
pub mod telemetry;
pub mod tensor;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use cache::Cache;
use config::Config;
use infer::Inference;
use repository::{LoadOptions, Repository};
use sandbox::{Engine, Limits, PoolOptions};
use schedule::Scheduler;

/// How long a request waits for a model that still loads. Longer than a request may take: to
/// compile a large guest takes seconds on a small machine, and happens once.
const LOADING_PATIENCE: Duration = Duration::from_secs(60);

/// Sets up engine, threads and repository for the bundles at `paths`; none is loaded yet.
///
/// # Errors
/// The machine cannot run wasmtime, or threads cannot be started.
pub fn set_up(config: &Config, paths: &[PathBuf]) -> anyhow::Result<(Arc<Inference>, LoadOptions)> {
    let pool = PoolOptions {
        slots: u32::try_from(config.sandboxes).context("setting sandboxes")?,
        max_memory_bytes: config.memory_bytes,
        page_scan: config.page_scan,
    };
    let engine = Engine::new(pool)
        .map_err(|error| anyhow::anyhow!("the Wasm engine cannot start: {error:#}"))?;
    let report = engine.pool();
    tracing::info!(
        pooled = report.pooled,
        pagemap_scan = report.pagemap_scan,
        "sandboxes are reset by {}",
        if report.pagemap_scan {
            "scanning for written pages (nothing can be swapped out here)"
        } else {
            "unmapping their pages"
        }
    );
    let cache = config.cache.as_deref().and_then(|folder| {
        let opened = Cache::open(folder);
        opened.inspect_err(|error| tracing::warn!("compiled guests are not kept: {error}")).ok()
    });
    let limits = Limits {
        memory_bytes: config.memory_bytes,
        // A body as a tensor, with what surrounds it; JSON grows when it is decoded.
        hostcall_bytes: config.body_limit.max(64 << 20) * 4,
        ..Limits::default()
    };
    let options = LoadOptions {
        engine,
        cache,
        limits,
        deadline: config.deadline,
        concurrency: config.concurrency,
        queue: config.queue,
    };
    let scheduler =
        Scheduler::new(config.threads, config.sandboxes).context("threads cannot be started")?;
    let inference = Inference { repository: Repository::find(paths, LOADING_PATIENCE), scheduler };
    Ok((Arc::new(inference), options))
}
