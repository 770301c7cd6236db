//! The protocol's statistics extension.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::Api;
use super::errors::Failed;
use super::metadata::ModelPath;
use super::reply::json;
use crate::error::Error;
use crate::repository::Version;
use crate::stats::Span;

#[derive(Serialize)]
struct Statistics {
    model_stats: Vec<VersionStatistics>,
}

#[derive(Serialize)]
pub(super) struct VersionStatistics {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) last_inference: u64,
    pub(super) inference_count: u64,
    pub(super) execution_count: u64,
    pub(super) inference_stats: InferenceStatistics,
    pub(super) batch_stats: Vec<BatchStatistics>,
    memory_usage: [(); 0],
}

#[derive(Serialize)]
pub(super) struct InferenceStatistics {
    pub(super) success: Duration,
    pub(super) fail: Duration,
    pub(super) queue: Duration,
    pub(super) compute_input: Duration,
    pub(super) compute_infer: Duration,
    pub(super) compute_output: Duration,
    pub(super) cache_hit: Duration,
    pub(super) cache_miss: Duration,
}

#[derive(Serialize)]
pub(super) struct BatchStatistics {
    pub(super) batch_size: u64,
    pub(super) compute_input: Duration,
    pub(super) compute_infer: Duration,
    pub(super) compute_output: Duration,
}

#[derive(Serialize, Default, Clone, Copy)]
pub(super) struct Duration {
    pub(super) count: u64,
    pub(super) ns: u64,
}

impl From<&Span> for Duration {
    fn from(span: &Span) -> Self {
        Self { count: span.count(), ns: span.ns() }
    }
}

pub(super) async fn all(State(api): State<Api>) -> Result<Response, Failed> {
    answer(&versions(&api, None, None)?)
}

/// Of one version, or of all that a client may ask for.
pub(super) async fn one(State(api): State<Api>, path: ModelPath) -> Result<Response, Failed> {
    answer(&versions(&api, Some(path.model()?), path.version())?)
}

fn answer(versions: &[Arc<Version>]) -> Result<Response, Failed> {
    let model_stats = versions.iter().map(|version| of_version(version)).collect();
    Ok(json(StatusCode::OK, &Statistics { model_stats }))
}

/// One version, all of a model that a client may ask for, or all there are.
///
/// # Errors
/// There is no such model or version.
pub(super) fn versions(
    api: &Api,
    model: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<Arc<Version>>, Error> {
    let repository = &api.inference().repository;
    let Some(model) = model else {
        let models = repository.models();
        let all = models.iter().flat_map(|model| model.versions());
        return Ok(all.map(|(version, ..)| version).collect());
    };
    let model = repository.model(model)?;
    if version.is_some() {
        return Ok(vec![model.version(version)?]);
    }
    let available = model.versions().into_iter().filter(|(_, _, available)| *available);
    Ok(available.map(|(version, ..)| version).collect())
}

pub(super) fn of_version(version: &Version) -> VersionStatistics {
    let stats = &version.stats;
    // The guest's own work around its graphs is what other servers call input and output.
    let (sandbox, before) = (Duration::from(&stats.sandbox), Duration::from(&stats.before.span));
    let compute_input = Duration { count: before.count, ns: sandbox.ns + before.ns };
    let compute_infer = Duration::from(&stats.graphs.span);
    let compute_output = Duration::from(&stats.after.span);
    let batches = stats.executions().into_iter().map(|(rows, run)| {
        let span = |ns| Duration { count: run.count, ns };
        BatchStatistics {
            batch_size: rows as u64,
            compute_input: span(run.input_ns),
            compute_infer: span(run.infer_ns),
            compute_output: span(run.output_ns),
        }
    });
    VersionStatistics {
        name: version.model.clone(),
        version: version.label.clone(),
        last_inference: stats.last_ms.load(Ordering::Relaxed),
        inference_count: stats.success.count(),
        execution_count: executions(version),
        inference_stats: InferenceStatistics {
            success: (&stats.success).into(),
            fail: (&stats.failure).into(),
            queue: (&stats.queue).into(),
            compute_input,
            compute_infer,
            compute_output,
            cache_hit: (&stats.cached).into(),
            cache_miss: Duration { count: stats.cache_misses.load(Ordering::Relaxed), ns: 0 },
        },
        batch_stats: batches.collect(),
        memory_usage: [],
    }
}

/// Runs: fewer than answers where some ran for several requests.
pub(super) fn executions(version: &Version) -> u64 {
    version.stats.executions().values().map(|run| run.count).sum()
}
