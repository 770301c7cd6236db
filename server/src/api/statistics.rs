//! The protocol's statistics extension, and the same counts as Prometheus metrics under the
//! names that existing dashboards know.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Api;
use super::errors::Failed;
use super::metadata::ModelPath;
use super::reply::json;
use crate::error::Error;
use crate::repository::Version;
use crate::stats::{BUCKETS, Histogram, Span};

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
            cache_hit: Duration::default(),
            cache_miss: Duration::default(),
        },
        batch_stats: batches.collect(),
        memory_usage: [],
    }
}

/// Runs: fewer than answers where some ran for several requests.
fn executions(version: &Version) -> u64 {
    version.stats.executions().values().map(|run| run.count).sum()
}

/// A counter or gauge: its name, type, meaning, and value for one version.
type Metric = (&'static str, &'static str, &'static str, fn(&Version) -> f64);

fn us(ns: u64) -> f64 {
    (ns / 1000) as f64
}

const METRICS: [Metric; 13] = [
    ("nv_inference_request_success", "counter", "Requests answered", |version| {
        version.stats.success.count() as f64
    }),
    ("nv_inference_count", "counter", "Inferences performed", |version| {
        version.stats.success.count() as f64
    }),
    ("nv_inference_exec_count", "counter", "Model executions performed", |version| {
        executions(version) as f64
    }),
    ("nv_inference_pending_request_count", "gauge", "Requests that wait or run", |version| {
        version.stats.pending.load(Ordering::Relaxed) as f64
    }),
    ("nv_inference_request_duration_us", "counter", "From arrival to answer", |version| {
        us(version.stats.success.ns())
    }),
    ("nv_inference_queue_duration_us", "counter", "Waiting for a turn", |version| {
        us(version.stats.queue.ns())
    }),
    (
        "nv_inference_compute_input_duration_us",
        "counter",
        "Sandbox, and the guest before its graphs",
        |version| us(version.stats.sandbox.ns() + version.stats.before.span.ns()),
    ),
    ("nv_inference_compute_infer_duration_us", "counter", "The graphs", |version| {
        us(version.stats.graphs.span.ns())
    }),
    (
        "nv_inference_compute_output_duration_us",
        "counter",
        "The guest after its graphs",
        |version| us(version.stats.after.span.ns()),
    ),
    ("wisp_waiting_requests", "gauge", "Requests that wait for their turn", |version| {
        version.waiting() as f64
    }),
    ("wisp_sandbox_start_seconds_total", "counter", "Making sandboxes", |version| {
        seconds(&version.stats.sandbox)
    }),
    ("wisp_guest_seconds_total", "counter", "Guests' own work", |version| {
        seconds(&version.stats.guest)
    }),
    ("wisp_compute_seconds_total", "counter", "Graphs' work", |version| {
        seconds(&version.stats.compute)
    }),
];

fn seconds(span: &Span) -> f64 {
    span.ns() as f64 / 1e9
}

/// A histogram: its name, meaning, and where it is.
type Spread = (&'static str, &'static str, fn(&Version) -> &Histogram);

const HISTOGRAMS: [Spread; 3] = [
    ("request_preprocess_seconds", "The guest before its graphs", |version| &version.stats.before),
    ("request_predict_seconds", "The graphs", |version| &version.stats.graphs),
    ("request_postprocess_seconds", "The guest after its graphs", |version| &version.stats.after),
];

/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Failed> {
    let inference = api.inference();
    let versions = versions(&api, None, None)?;
    let text = exposition(&versions, inference.repository.live_sandboxes());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

fn exposition(versions: &[Arc<Version>], live: usize) -> String {
    let mut text = String::new();
    let mut line = |line: std::fmt::Arguments<'_>| {
        text.write_fmt(line).expect("writing to a String cannot fail");
        text.push('\n');
    };
    // Names have letters, digits and `-_.` only: nothing to escape.
    for (name, kind, help, value) in METRICS {
        line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        for version in versions {
            let (model, label) = (&version.model, &version.label);
            line(format_args!(
                "{name}{{model=\"{model}\",version=\"{label}\"}} {}",
                value(version)
            ));
        }
    }
    let name = "nv_inference_request_failure";
    line(format_args!("# HELP {name} Requests not answered, by reason\n# TYPE {name} counter"));
    for version in versions {
        let (model, label) = (&version.model, &version.label);
        let failures = version.stats.failures();
        for reason in ["REJECTED", "CANCELED", "BACKEND", "OTHER"] {
            let count: u64 = failures
                .iter()
                .filter(|(kind, _)| reason_of(kind) == reason)
                .map(|(_, count)| count)
                .sum();
            line(format_args!(
                "{name}{{model=\"{model}\",reason=\"{reason}\",version=\"{label}\"}} {count}"
            ));
        }
    }
    let name = "wisp_request_failures_total";
    line(format_args!(
        "# HELP {name} Requests not answered, by wisp's error kind\n# TYPE {name} counter"
    ));
    for version in versions {
        let (model, label) = (&version.model, &version.label);
        for (kind, count) in version.stats.failures() {
            line(format_args!(
                "{name}{{model=\"{model}\",version=\"{label}\",kind=\"{kind}\"}} {count}"
            ));
        }
    }
    let name = "wisp_guest_traps_total";
    line(format_args!("# HELP {name} Guests that trapped, by the trap\n# TYPE {name} counter"));
    for version in versions {
        let (model, label) = (&version.model, &version.label);
        for (trap, count) in version.stats.traps() {
            line(format_args!(
                "{name}{{model=\"{model}\",version=\"{label}\",trap=\"{trap}\"}} {count}"
            ));
        }
    }
    for (name, help, histogram) in HISTOGRAMS {
        line(format_args!("# HELP {name} {help}\n# TYPE {name} histogram"));
        for version in versions {
            let (model, label) = (&version.model, &version.label);
            let labels = format!("model_name=\"{model}\",model_version=\"{label}\"");
            let histogram = histogram(version);
            for (bound, count) in BUCKETS.iter().zip(histogram.cumulative()) {
                line(format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {count}"));
            }
            let (count, seconds) = (histogram.span.count(), histogram.span.ns() as f64 / 1e9);
            line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
            line(format_args!(
                "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}"
            ));
        }
    }
    line(format_args!(
        "# HELP wisp_live_sandboxes Sandboxes alive now\n# TYPE wisp_live_sandboxes gauge\nwisp_live_sandboxes {live}"
    ));
    text
}

/// Triton's reasons, of wisp's kinds.
fn reason_of(kind: &str) -> &'static str {
    match kind {
        "overloaded" | "no-room" => "REJECTED",
        "cancelled" => "CANCELED",
        "guest-trap" | "guest-memory" | "guest-failed" | "compute" | "deadline" => "BACKEND",
        _ => "OTHER",
    }
}
