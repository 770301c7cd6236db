//! The counts of all versions as Prometheus metrics, under the names that existing dashboards
//! know.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::callers::Caller;
use super::statistics::executions;
use crate::infer::Inference;
use crate::repository::{self, Version};
use crate::stats::{BUCKETS, Histogram, Span};
use crate::usage::UsageRecord;

/// A counter or gauge: its name, type, meaning, and value for one version.
type Metric = (&'static str, &'static str, &'static str, fn(&Version) -> f64);

fn us(ns: u64) -> f64 {
    (ns / 1000) as f64
}

const METRICS: [Metric; 18] = [
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
    ("wisp_held_tensor_bytes", "gauge", "Tensors that are held for guests", |version| {
        version.held_tensor_bytes() as f64
    }),
    ("wisp_model_memory_bytes", "gauge", "What it takes in memory now", |version| {
        if version.is_loaded() { version.memory_bytes() as f64 } else { 0.0 }
    }),
    ("wisp_model_loads_total", "counter", "Times it was loaded", |version| {
        version.stats.wakes.count() as f64
    }),
    ("wisp_model_load_seconds_total", "counter", "Loading it", |version| {
        seconds(&version.stats.wakes)
    }),
    ("wisp_model_waiting_requests", "gauge", "Requests that wait for it to be loaded", |version| {
        version.waiting_to_load() as f64
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

/// What was used: a metric's name, type, meaning, and value for one model, version and API key.
type Used = (&'static str, &'static str, &'static str, fn(&UsageRecord) -> f64);

const USAGE: [Used; 9] = [
    ("wisp_usage_requests_total", "counter", "Requests that ran, by API key", |used| {
        used.requests as f64
    }),
    ("wisp_usage_answered_total", "counter", "Of those, answered", |used| used.answered as f64),
    ("wisp_usage_cached_total", "counter", "Requests answered from the cache", |used| {
        used.cached as f64
    }),
    ("wisp_usage_server_cpu_seconds_total", "counter", "CPU time of the server itself", |used| {
        used.server_cpu_us as f64 / 1e6
    }),
    ("wisp_usage_guest_cpu_seconds_total", "counter", "CPU time of guests", |used| {
        used.guest_cpu_us as f64 / 1e6
    }),
    ("wisp_usage_compute_cpu_seconds_total", "counter", "CPU time of graphs", |used| {
        used.compute_cpu_us as f64 / 1e6
    }),
    ("wisp_usage_peak_memory_bytes", "gauge", "The most that one request held", |used| {
        used.peak_memory_bytes as f64
    }),
    ("wisp_usage_bytes_in_total", "counter", "Bytes of input tensors", |used| used.bytes_in as f64),
    ("wisp_usage_bytes_out_total", "counter", "Bytes of output tensors", |used| {
        used.bytes_out as f64
    }),
];

/// A histogram: its name, meaning, and where it is.
type Spread = (&'static str, &'static str, fn(&Version) -> &Histogram);

const HISTOGRAMS: [Spread; 3] = [
    ("request_preprocess_seconds", "The guest before its graphs", |version| &version.stats.before),
    ("request_predict_seconds", "The graphs", |version| &version.stats.graphs),
    ("request_postprocess_seconds", "The guest after its graphs", |version| &version.stats.after),
];

/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
///
/// Who asks with an API key is told of its usage only.
pub(super) async fn metrics(State(api): State<Api>, caller: Caller) -> Response {
    exposition(api.inference(), caller.key().as_deref())
}

/// All metrics, and usage of that key or all.
pub(super) fn exposition(inference: &Inference, key: Option<&str>) -> Response {
    let text = text(inference, key);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn text(inference: &Inference, key: Option<&str>) -> String {
    let models = inference.repository.models();
    let versions = models.iter().flat_map(|model| model.versions());
    let versions: Vec<Arc<Version>> = versions.map(|(version, ..)| version).collect();
    let versions = &versions;
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
    let name = "wisp_model_state";
    line(format_args!("# HELP {name} 1 of the state that it is in\n# TYPE {name} gauge"));
    for version in versions {
        let (model, label, now) = (&version.model, &version.label, version.state().name());
        for state in repository::State::NAMES {
            let holds = u8::from(state == now);
            line(format_args!(
                "{name}{{model=\"{model}\",version=\"{label}\",state=\"{state}\"}} {holds}"
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
    let name = "wisp_model_evictions_total";
    line(format_args!("# HELP {name} Times it went cold, by the reason\n# TYPE {name} counter"));
    for version in versions {
        let (model, label, stats) = (&version.model, &version.label, &version.stats);
        for (reason, count) in [("idle", &stats.evicted_idle), ("memory", &stats.evicted_memory)] {
            let count = count.load(Ordering::Relaxed);
            line(format_args!(
                "{name}{{model=\"{model}\",version=\"{label}\",reason=\"{reason}\"}} {count}"
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
    let usage = inference.usage.records(key);
    for (name, kind, help, value) in USAGE {
        line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        for record in &usage {
            let (model, label) = (&record.model, &record.version);
            // Keys' names have no white space; what would end the label is left out.
            let key = record.key.as_deref().unwrap_or_default().replace(['"', '\\'], "");
            let value = value(record);
            line(format_args!(
                "{name}{{model=\"{model}\",version=\"{label}\",key=\"{key}\"}} {value}"
            ));
        }
    }
    let repository = &inference.repository;
    let (loaded, sandboxes, budget) = repository.memory();
    for (name, help, value) in [
        ("wisp_live_sandboxes", "Sandboxes alive now", repository.live_sandboxes() as u64),
        ("wisp_models_memory_bytes", "What loaded models take in memory", loaded),
        ("wisp_sandboxes_memory_bytes", "Linear memories of live sandboxes", sandboxes),
        ("wisp_memory_budget_bytes", "What both may take together", budget),
    ] {
        line(format_args!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"));
    }
    text
}

/// Triton's reasons, of wisp's kinds.
fn reason_of(kind: &str) -> &'static str {
    match kind {
        "overloaded" | "no-room" => "REJECTED",
        "cancelled" => "CANCELED",
        "guest-trap" | "guest-memory" | "guest-failed" | "compute" | "graph-memory" => "BACKEND",
        "deadline" | "cpu-limit" => "BACKEND",
        _ => "OTHER",
    }
}
