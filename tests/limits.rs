//! What one model's requests may use, as its manifest says.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Server, add_request, fixture, hostile_bundle, model, refused, scratch, wisp};

fn limited(folder: &Path, name: &str, limits: &str) -> PathBuf {
    hostile_bundle(folder, name, &format!("[limits]\n{limits}\n"))
}

fn serve(bundles: &[PathBuf]) -> Server {
    Server::start_with(bundles, &["--deadline-ms", "20000"])
}

#[test]
fn cpu_time_that_is_used_up_ends_a_request() {
    let scratch = scratch();
    let server = serve(&[limited(scratch.path(), "limited", "cpu_ms = 50")]);
    assert_eq!(server.infer_raw("limited", "text/plain", b"nothing").status, 200);
    let started = Instant::now();
    let ended = server.infer_raw("limited", "text/plain", b"loop");
    insta::assert_snapshot!(ended.error(500, "cpu-limit"), @"model `limited` used up the 50ms of CPU time that a request may have");
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// rten computes on threads of its own.
#[test]
fn cpu_time_of_a_graph_counts_whichever_thread_spends_it() {
    let scratch = scratch();
    let bundle = |name: &str, limits: &str| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).expect("a folder");
        let manifest = format!("engine = \"rten\"\n{limits}\n[graphs]\nmodel = \"slow.onnx\"\n");
        fs::write(path.join("wisp.toml"), manifest).expect("a manifest");
        fs::copy(fixture("models/matmul_slow.onnx"), path.join("slow.onnx")).expect("a fixture");
        path
    };
    let server = serve(&[bundle("free", ""), bundle("limited", "[limits]\ncpu_ms = 20")]);
    let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [1], "data": [3.0]}]);
    let ask = |model: &str| server.infer(model, &json!({"inputs": inputs}));
    assert_eq!(ask("free").status, 200);
    let usage = server.get("/usage").json();
    let spent = &usage["usage"][0]["compute_cpu_us"];
    assert!(spent.as_u64().is_some_and(|spent| spent > 20_000), "{usage}");
    ask("limited").error(500, "cpu-limit");
}

/// Where cores are free, a graph's work is shared; its answer and its account stay what they are.
#[test]
fn a_graph_may_run_on_several_threads() {
    let scratch = scratch();
    let bundle = |name: &str, limits: &str| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).expect("a folder");
        let manifest = format!("{limits}\n[graphs]\nmodel = \"minilm.onnx\"\n");
        fs::write(path.join("wisp.toml"), manifest).expect("a manifest");
        let graph = fs::read_dir(model("minilm")).expect("fetched by `make models`");
        let graph = graph.map(|entry| entry.expect("an entry").path());
        let graph = graph.into_iter().find(|path| path.extension().is_some_and(|it| it == "onnx"));
        fs::copy(graph.expect("a graph"), path.join("minilm.onnx")).expect("a graph");
        path
    };
    let bundles = [bundle("alone", ""), bundle("helped", "[limits]\nthreads = 4")];
    let server = Server::start_with(&bundles, &["--threads", "4"]);
    let ids: Vec<u32> = (0..128).map(|i| 1000 + i * 7).collect();
    let tensor = |name: &str, data: &[u32]| json!({"name": name, "datatype": "INT64", "shape": [1, 128], "data": data});
    let inputs: Vec<_> = server.get("/v2/models/alone").json()["inputs"]
        .as_array()
        .expect("inputs")
        .iter()
        .map(|input| match input["name"].as_str().expect("a name") {
            "input_ids" => tensor("input_ids", &ids),
            "attention_mask" => tensor("attention_mask", &[1; 128]),
            other => tensor(other, &[0; 128]),
        })
        .collect();
    let ask = |model: &str| {
        let reply = server.infer(model, &json!({"inputs": inputs}));
        assert_eq!(reply.status, 200, "{}", reply.json());
        reply.outputs()
    };
    let has_helpers = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
        tasks.flatten().any(|task| {
            fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| name.trim() == "wisp-help")
        })
    };
    let alone = ask("alone");
    assert!(!has_helpers());
    // A graph's first run is not helped.
    assert_eq!(ask("helped"), alone);
    assert!(!has_helpers());
    assert_eq!(ask("helped"), alone);
    assert!(has_helpers());
    // Helpers' time counts: four threads that each do a quarter use no less than one. By turns, as
    // a processor is not always as fast; and some more, as helpers that wake late find nothing to do.
    let spent = || {
        let usage = server.get("/usage").json();
        ["alone", "helped"].map(|name| {
            let rows = usage["usage"].as_array().expect("rows");
            let row = rows.iter().find(|row| row["model"] == name).expect("a row");
            row["compute_cpu_us"].as_u64().expect("a number")
        })
    };
    let before = spent();
    for _ in 0..8 {
        assert_eq!([ask("alone"), ask("helped")], [alone.clone(), alone.clone()]);
    }
    let after = spent();
    let [alone, helped] = [after[0] - before[0], after[1] - before[1]];
    assert!(helped * 10 > alone * 6, "{helped} µs with helpers, {alone} without");
}

/// A quick request beside a long one: both are answered, and one core computes for both.
#[test]
fn no_more_threads_compute_than_may() {
    let scratch = scratch();
    let quick = hostile_bundle(scratch.path(), "quick", "[graphs]\nwide = \"wide.onnx\"\n");
    fs::copy(fixture("models/wide.onnx"), quick.join("wide.onnx")).expect("a fixture");
    let bundles = [quick, limited(scratch.path(), "long", "")];
    let server = Server::start_with(&bundles, &["--threads", "1", "--deadline-ms", "3000"]);
    let data = json!(["round-trips"]);
    let inputs = json!([{"name": "do", "datatype": "BYTES", "shape": [1], "data": data}]);
    // Most of a millisecond, so that the network's part is small beside it.
    let body = json!({"inputs": inputs, "parameters": {"count": 5}});
    let ask = || assert_eq!(server.infer("quick", &body).status, 200);
    // The first ones count as long.
    (0..30).for_each(|_| ask());
    thread::scope(|scope| {
        let long = scope.spawn(|| server.infer_raw("long", "text/plain", b"loop"));
        let (began, before) = (Instant::now(), server.cpu_us());
        let ask_on = || {
            let mut answered = 0;
            while !long.is_finished() {
                ask();
                answered += 1;
            }
            answered
        };
        let answered = thread::scope(|scope| {
            let both = [scope.spawn(ask_on), scope.spawn(ask_on)];
            both.map(|asked| asked.join().expect("answers")).iter().sum::<usize>()
        });
        let (took, spent) = (began.elapsed(), Duration::from_micros(server.cpu_us() - before));
        assert!(answered > 100, "{answered} answers in {took:?}");
        assert!(spent < took.mul_f64(1.5), "{spent:?} of CPU time in {took:?}, on one core");
        long.join().expect("answered").error(504, "deadline");
    });
}

/// A product of doubles leaves its core to nobody before it ends.
#[test]
fn what_cannot_give_way_holds_nobody_up() {
    let bundles = ["matmul_double", "add"].map(|name| fixture(&format!("models/{name}.onnx")));
    let server = Server::start_with(&bundles, &["--threads", "1"]);
    let x = json!([{"name": "x", "datatype": "FP64", "shape": [1], "data": [3.0]}]);
    let ask = |model: &str, body| assert_eq!(server.infer(model, body).status, 200);
    let (slow, add) = (json!({"inputs": x}), add_request());
    (0..30).for_each(|_| ask("add", &add));
    const RUNS: usize = 5;
    let answered = thread::scope(|scope| {
        let runs = scope.spawn(|| (0..RUNS).for_each(|_| ask("matmul_double", &slow)));
        let ask_on = || {
            let mut answered = 0;
            while !runs.is_finished() {
                ask("add", &add);
                answered += 1;
            }
            answered
        };
        thread::scope(|scope| {
            let all: [_; 4] = std::array::from_fn(|_| scope.spawn(ask_on));
            all.map(|asked| asked.join().expect("answers"))
        })
    });
    // A few for each product, if they waited for it.
    assert!(answered.iter().all(|&count| count > 20 * RUNS), "{answered:?} beside {RUNS} runs");
}

/// So does one that was taken for quick, on the thread that read it.
#[test]
fn what_was_taken_for_quick_holds_nobody_up() {
    let bundles = ["matmul_sides", "add"].map(|name| fixture(&format!("models/{name}.onnx")));
    let server = Server::start_with(&bundles, &["--threads", "1"]);
    let ask = |model: &str, body: &Value| assert_eq!(server.infer(model, body).status, 200);
    let product = |side: usize| {
        let sides =
            json!([{"name": "sides", "datatype": "INT64", "shape": [2], "data": [side, side]}]);
        ask("matmul_sides", &json!({"inputs": sides}));
    };
    let add = add_request();
    for _ in 0..60 {
        product(2);
        ask("add", &add);
    }
    let answered = thread::scope(|scope| {
        let slow = scope.spawn(|| product(2048));
        let mut answered = 0;
        while !slow.is_finished() {
            ask("add", &add);
            assert_eq!(server.get("/v2/health/live").status, 200);
            answered += 1;
        }
        answered
    });
    assert!(answered > 50, "{answered} beside one product of 9 billion");
}

#[test]
fn tensors_are_bounded_apart_from_memory() {
    let scratch = scratch();
    let server = serve(&[
        limited(scratch.path(), "few", "tensor_mib = 1"),
        limited(scratch.path(), "many", "memory_mib = 64"),
    ]);
    let ended = server.infer_raw("few", "text/plain", b"tensors");
    ended.error(500, "guest-memory");
    assert_eq!(server.infer_raw("few", "text/plain", b"nothing").status, 200);
    server.infer_raw("many", "text/plain", b"tensors").error(500, "guest-memory");
}

#[test]
fn as_many_run_and_wait_as_the_model_may() {
    let scratch = scratch();
    let limits = "concurrency = 1\nqueue = 1\ndeadline_ms = 3000";
    let server = serve(&[
        limited(scratch.path(), "narrow", limits),
        limited(scratch.path(), "bystander", ""),
    ]);
    let ask = || server.infer_raw("narrow", "text/plain", b"loop");
    let statuses: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        // Its neighbours do not notice.
        assert_eq!(server.infer_raw("bystander", "text/plain", b"nothing").status, 200);
        asked.into_iter().map(|asked| asked.join().expect("answered")).collect()
    });
    let refused: Vec<_> = statuses.iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(refused.len(), 4);
    for reply in refused {
        insta::allow_duplicates! {
            insta::assert_snapshot!(reply.error(503, "overloaded"), @"model `narrow` is overloaded: 1 requests wait already");
        }
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
}

/// Nobody waits for its answer any more: it does not run.
#[test]
fn what_waits_past_its_deadline_does_not_run() {
    let scratch = scratch();
    let limits = "concurrency = 1\nqueue = 4\ndeadline_ms = 3000";
    let server = serve(&[limited(scratch.path(), "narrow", limits)]);
    thread::scope(|scope| {
        let ahead = scope.spawn(|| server.infer_raw("narrow", "text/plain", b"loop"));
        let requests = || server.get("/usage").json()["usage"][0]["requests"].clone();
        while requests() != json!(1) {
            assert!(!ahead.is_finished(), "it does not run");
        }
        let inputs =
            json!([{"name": "do", "datatype": "BYTES", "shape": [1], "data": ["nothing"]}]);
        let body = json!({"inputs": inputs, "parameters": {"timeout": 20_000}});
        let late = server.infer("narrow", &body);
        insta::assert_snapshot!(late.error(504, "deadline"), @"model `narrow` did not answer within 20ms");
        assert!(!ahead.is_finished(), "it was told too late");
        ahead.join().expect("answered").error(504, "deadline");
    });
    // Behind it in the queue, if it were there still.
    assert_eq!(server.infer_raw("narrow", "text/plain", b"nothing").status, 200);
    assert_eq!(server.get("/usage").json()["usage"][0]["requests"], json!(2));
}

#[test]
fn a_longer_body_than_the_model_takes_is_refused() {
    let scratch = scratch();
    let server = serve(&[
        limited(scratch.path(), "short", "body_kib = 4"),
        limited(scratch.path(), "long", ""),
    ]);
    let body = vec![b'x'; 5000];
    let refused = server.infer_raw("short", "text/plain", &body);
    insta::assert_snapshot!(refused.error(413, "too-large"), @"the body has more than 4096 bytes, the limit here");
    assert_eq!(server.infer_raw("long", "text/plain", &body).status, 200);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let scratch = scratch();
    let check = |limits: &str| {
        let bundle = limited(scratch.path(), "odd", limits);
        refused(&wisp().arg("check").arg(bundle).output().expect("wisp runs"))
    };
    for limit in ["cpu_ms", "tensor_mib", "graph_mib", "threads", "concurrency", "body_kib"] {
        let said = check(&format!("{limit} = 0"));
        assert!(said.contains(&format!("limits.{limit} is 0, expected 1 or more")), "{said}");
    }
    let said = check("threads = 1025");
    assert!(said.contains("limits.threads is 1025, expected 1 to 1024"), "{said}");
    let said = check("tensor_mib = 100000");
    assert!(said.contains("limits.tensor_mib is 100000, expected 1 to 256"), "{said}");
    let bundle = hostile_bundle(scratch.path(), "odd", "[response_cache]\nmax_mib = 0\n");
    let said = refused(&wisp().arg("check").arg(bundle).output().expect("wisp runs"));
    assert!(said.contains("response_cache.max_mib is 0, expected 1 to 4096"), "{said}");
}
