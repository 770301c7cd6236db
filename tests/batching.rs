//! Several requests in one run of a graph: where the manifest asks for it and it was measured to
//! pay. The answers are those of requests that run alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use crate::support::{Reply, Server, fixture, refused, scratch, succeeded, wisp};

fn bundle(folder: &Path, graph: &str, batching: &str) -> PathBuf {
    let path = folder.join(graph);
    fs::create_dir_all(&path).expect("a folder");
    let manifest = format!("[batching]\n{batching}\n[graphs]\nmodel = \"model.onnx\"\n");
    fs::write(path.join("wisp.toml"), manifest).expect("a manifest");
    let copied = fs::copy(fixture(&format!("models/{graph}.onnx")), path.join("model.onnx"));
    copied.expect("a fixture");
    path
}

/// Runs on threads of its own.
fn on_rten(bundle: PathBuf) -> PathBuf {
    let path = bundle.join("wisp.toml");
    let manifest = fs::read_to_string(&path).expect("a manifest");
    fs::write(path, format!("engine = \"rten\"\n{manifest}")).expect("a manifest");
    bundle
}

fn batches(bundle: &Path) -> Value {
    let output = wisp().arg("check").arg(bundle).arg("--json").output().expect("wisp runs");
    let report: Value = serde_json::from_str(&succeeded(&output)).expect("a report");
    report["graphs"][0]["engine"]["batches"].clone()
}

/// Rows of `x`, each with the index whose value is added to it.
fn ask(server: &Server, rows: &[(f64, i64)], parameters: Value) -> Reply {
    let (x, i): (Vec<f64>, Vec<i64>) = rows.iter().copied().unzip();
    let shape = [rows.len(), 1];
    let body = json!({
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": shape, "data": x},
            {"name": "i", "datatype": "INT64", "shape": shape, "data": i},
        ],
        "parameters": parameters,
    });
    server.post("/v2/models/rows/infer", &[], body.to_string().as_bytes())
}

fn statistics(server: &Server) -> Value {
    server.get("/v2/models/rows/stats").json()["model_stats"][0].clone()
}

fn deployed(state: &Path, bundle: &Path) -> Server {
    let server = Server::start_admin(state, &[], &[]);
    server.wisp_ok(&["deploy", bundle.to_str().expect("UTF-8")]);
    server
}

#[test]
fn what_pays_is_measured() {
    let scratch = scratch();
    let rows = batches(&bundle(scratch.path(), "rows", "max_batch_size = 8"));
    assert!(rows["sizes"].as_array().is_some_and(|sizes| sizes.contains(&json!(8))), "{rows}");
    let preferred = "max_batch_size = 8\npreferred_batch_size = [6]";
    assert_eq!(batches(&bundle(scratch.path(), "rows", preferred))["sizes"], json!([6]));
    let none = |graph: &str| {
        let batches = batches(&bundle(scratch.path(), graph, "max_batch_size = 8"));
        assert_eq!(batches["sizes"], json!([]), "{graph}: {batches}");
        batches["reason"].as_str().expect("a text").to_owned()
    };
    let mixed = none("mixed_rows");
    assert!(mixed.contains("of 2 rows at once it gives others: "), "{mixed}");
    let scaled = none("scaled_rows");
    assert!(scaled.contains("of 2 rows at once it gives others: "), "{scaled}");
    assert_eq!(none("quantized_rows"), "DynamicQuantizeLinear makes one scale for all rows");
    assert_eq!(none("add"), "its tensors' first sizes are not all free");
    let text = wisp().arg("check").arg(scratch.path().join("rows")).output().expect("wisp runs");
    let text = succeeded(&text);
    assert!(text.contains("\nbatches     6 (6 at once take "), "{text}");
}

#[test]
fn a_setting_that_is_none_is_refused() {
    let scratch = scratch();
    let odd = |batching: &str| {
        let path = bundle(scratch.path(), "rows", batching);
        refused(&wisp().arg("check").arg(path).output().expect("wisp runs"))
    };
    let said = odd("max_batch_size = 1");
    assert!(said.contains("batching.max_batch_size is 1, expected 2 to 1024"), "{said}");
    let said = odd("max_batch_size = 4\nmax_queue_delay_us = 2000000");
    assert!(said.contains("max_queue_delay_us is 2000000, expected at most 1000000"), "{said}");
    let said = odd("max_batch_size = 4\npreferred_batch_size = [2, 8]");
    assert!(said.contains("preferred_batch_size has 8, expected 2 to max_batch_size, 4"), "{said}");
    let said = odd("max_queue_delay_us = 1");
    assert!(said.contains("missing field `max_batch_size`"), "{said}");
}

#[test]
fn requests_share_runs_and_keep_their_answers() {
    let (state, scratch) = (scratch(), scratch());
    let batching = "max_batch_size = 8\nmax_queue_delay_us = 300000";
    let server = deployed(state.path(), &bundle(scratch.path(), "rows", batching));
    const REQUESTS: usize = 16;
    thread::scope(|scope| {
        for number in 0..REQUESTS {
            let server = &server;
            scope.spawn(move || {
                let row = (number as f64, (number % 2) as i64);
                // Some bring two rows.
                let rows = vec![row; 1 + usize::from(number % 5 == 0)];
                let reply = ask(server, &rows, json!({}));
                let expected = row.0 + 1000.0 * row.1 as f64;
                assert_eq!(reply.floats("y"), vec![expected; rows.len()]);
            });
        }
    });
    let statistics = statistics(&server);
    assert_eq!(statistics["inference_count"], json!(REQUESTS));
    let executions = statistics["execution_count"].as_u64().expect("a count");
    assert!((3..=REQUESTS as u64 / 2).contains(&executions), "{statistics}");
    let batches = statistics["batch_stats"].as_array().expect("a list");
    assert!(batches.iter().any(|batch| batch["batch_size"] == json!(8)), "{statistics}");
}

#[test]
fn a_bad_row_fails_alone() {
    let (state, scratch) = (scratch(), scratch());
    let batching = "max_batch_size = 8\nmax_queue_delay_us = 300000";
    let server = deployed(state.path(), &bundle(scratch.path(), "rows", batching));
    thread::scope(|scope| {
        for number in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let index = if number == 3 { 7 } else { 0 };
                let reply = ask(server, &[(f64::from(number), index)], json!({}));
                match number {
                    3 => drop(reply.error(500, "compute")),
                    _ => assert_eq!(reply.floats("y"), [f64::from(number)]),
                }
            });
        }
    });
    assert_eq!(statistics(&server)["inference_count"], json!(7));
}

#[test]
fn who_leaves_leaves_the_others_as_they_were() {
    let (state, scratch) = (scratch(), scratch());
    let batching = "max_batch_size = 8\nmax_queue_delay_us = 1000000";
    let server = deployed(state.path(), &bundle(scratch.path(), "rows", batching));
    thread::scope(|scope| {
        for number in 0..7 {
            let server = &server;
            scope.spawn(move || {
                // Those that come first lead, and give up long before the delay is over.
                if number < 4 {
                    let reply = ask(server, &[(1.0, 0)], json!({"timeout": 100_000}));
                    reply.error(504, "deadline");
                } else {
                    thread::sleep(std::time::Duration::from_millis(50));
                    let reply = ask(server, &[(f64::from(number), 1)], json!({}));
                    assert_eq!(reply.floats("y"), [1000.0 + f64::from(number)]);
                }
            });
        }
    });
    assert_eq!(ask(&server, &[(5.0, 0)], json!({})).floats("y"), [5.0]);
}

/// Who leads a run has its rows' part of it, wherever it was computed.
#[test]
fn what_a_shared_run_took_is_counted_once() {
    let (state, scratch) = (scratch(), scratch());
    let batching = "max_batch_size = 8\nmax_queue_delay_us = 200000";
    let server = deployed(state.path(), &on_rten(bundle(scratch.path(), "rows", batching)));
    let round = || {
        thread::scope(|scope| {
            for number in 0..8 {
                let server = &server;
                scope.spawn(move || {
                    let reply = ask(server, &[(f64::from(number), 0)], json!({}));
                    assert_eq!(reply.floats("y"), [f64::from(number)]);
                });
            }
        });
    };
    let used = || {
        let usage = server.get("/usage").json();
        let number = |field: &str| usage["usage"][0][field].as_u64().expect("a number");
        ["guest_cpu_us", "compute_cpu_us", "server_cpu_us"].map(number)
    };
    round();
    let (before, spent_before) = (used(), server.cpu_us());
    (0..10).for_each(|_| round());
    let (spent, after) = (server.cpu_us() - spent_before, used());
    let stats = statistics(&server);
    let runs = stats["execution_count"].as_u64().expect("a number");
    assert!(runs < 60, "{runs} runs for 88 requests: none was shared");
    let [guest, compute, own] = [0, 1, 2].map(|at| after[at] - before[at]);
    // Ticks of 10 ms are what the system counts in.
    assert!((guest + compute + own) * 100 < spent * 105 + 2_000_000, "{after:?}, {spent} µs");
    assert!(guest < compute, "a guest that does nothing took {guest} µs, its graph {compute}");
}
