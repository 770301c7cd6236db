//! wisp: serves small ML models on CPUs, each request in a fresh Wasm sandbox.
//!
//! The binary is a thin shell around this library; ARCHITECTURE.md is the map. Read one request
//! along `api` → `infer` → `sandbox` → `nn`, one deployment along `api` → `deploy` → `store`.

pub mod api;
pub mod api_keys;
pub mod bundle;
pub mod cache;
pub mod cli;
pub mod config;
pub mod confine;
mod cpu;
pub mod deploy;
pub mod digest;
pub mod error;
pub mod examine;
pub mod infer;
pub mod log_levels;
pub mod memory;
pub mod nn;
mod overhead;
pub mod registry;
pub mod repository;
pub mod response_cache;
pub mod sandbox;
pub mod schedule;
pub mod signature;
pub mod stats;
pub mod store;
pub mod telemetry;
mod turns;
pub mod usage;
pub mod watch;

pub use wisp_engine::{compare, tensor};

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use infer::Inference;
use repository::{EngineSettings, LoadOptions, Place, Repository, ResidencyOptions};
use sandbox::Engine;
use schedule::Scheduler;
use usage::Usage;

/// How long a request waits for a model that still loads. Longer than a request may take: to
/// compile a large guest takes seconds on a small machine, and happens once.
const LOADING_PATIENCE: Duration = Duration::from_secs(60);

/// Sets up engine, threads and repository for the bundles at `places`; none is loaded yet.
///
/// # Errors
/// The machine cannot run wasmtime, or threads cannot be started.
pub fn set_up(
    settings: &EngineSettings,
    residency: ResidencyOptions,
    threads: usize,
    places: &[Place],
    usage: Arc<Usage>,
) -> anyhow::Result<(Arc<Inference>, Arc<Engine>)> {
    let options = LoadOptions::new(settings).map_err(anyhow::Error::msg)?;
    let engine = options.engine.clone();
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
    let guests = engine.clone();
    let hurry = move || guests.interrupt();
    let scheduler = Scheduler::new(threads, settings.sandboxes as usize, hurry);
    let scheduler = scheduler.context("threads cannot be started")?;
    let repository = Repository::find(places, options, residency, LOADING_PATIENCE);
    Ok((Arc::new(Inference::new(repository, scheduler, usage)), engine))
}
