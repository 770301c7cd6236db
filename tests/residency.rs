//! Models that are loaded when they are asked for, and cold when they are not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Server, add_request, fixture, hostile_bundle, model, read, scratch, succeeded, wisp,
};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn version(server: &Server, model: &str) -> Value {
    let listed: Value =
        serde_json::from_str(&server.wisp_ok(&["list", model, "--json"])).expect("JSON");
    listed[0]["versions"][0].clone()
}

fn state(server: &Server, model: &str) -> String {
    version(server, model)["state"].as_str().expect("a text").to_owned()
}

/// Waits until the model is in that state, half a minute at most.
fn await_state(server: &Server, model: &str, expected: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while state(server, model) != expected {
        assert!(Instant::now() < until, "{model} is {}, not {expected}", state(server, model));
        thread::sleep(Duration::from_millis(50));
    }
}

/// The value of a metric's line that begins so.
fn metric(server: &Server, line: &str) -> f64 {
    let metrics = String::from_utf8(server.get("/metrics").body).expect("UTF-8");
    let found = metrics.lines().find_map(|found| found.strip_prefix(line));
    found.unwrap_or_else(|| panic!("no {line} in {metrics}")).trim().parse().expect("a number")
}

/// A bundle of the hostile guest with a graph of 20 MiB, and these lines in its manifest.
fn large_bundle(folder: &Path, name: &str, more: &str) -> PathBuf {
    let graph = "[graphs]\nlarge = \"large.onnx\"\n";
    let bundle = hostile_bundle(folder, name, &format!("name = \"{name}\"\n{more}{graph}"));
    fs::copy(model("imagenet").join("efficientnet-lite0.onnx"), bundle.join("large.onnx"))
        .expect("a graph");
    bundle
}

fn seven(server: &Server) -> String {
    let seven = read(&fixture("photos/seven.png"));
    server.infer_raw("digits", "image/png", &seven).strings("label")[0].clone()
}

#[test]
fn a_model_that_nobody_asks_for_goes_cold_and_is_woken_once() {
    let scratch = scratch();
    let server = Server::start_admin(&scratch.path().join("state"), &[], &["--idle-seconds", "2"]);
    server.wisp_ok(&["deploy", text(&model("digits"))]);
    let loaded = version(&server, "digits")["memory_bytes"].as_u64().expect("a number");
    assert!(loaded > 1 << 20, "{loaded}");
    await_state(&server, "digits", "cold");
    assert_eq!(metric(&server, "wisp_model_memory_bytes{model=\"digits\",version=\"1\"}"), 0.0);
    assert_eq!(metric(&server, "wisp_models_memory_bytes"), 0.0);
    let states = || {
        let metrics = String::from_utf8(server.get("/metrics").body).expect("UTF-8");
        let holds = |line: &&str| line.starts_with("wisp_model_state{") && line.ends_with("} 1");
        metrics.lines().filter(holds).map(str::to_owned).collect::<Vec<_>>()
    };
    let is_in = |state: &str| {
        format!("wisp_model_state{{model=\"digits\",version=\"1\",state=\"{state}\"}} 1")
    };
    assert_eq!(states(), [is_in("cold")]);
    assert_eq!(server.get("/v2/models/digits/ready").json()["ready"], true);

    let woken = metric(&server, "wisp_model_loads_total{model=\"digits\",version=\"1\"}");
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| seven(&server))).collect();
        asked.into_iter().map(|asked| asked.join().expect("answered")).collect()
    });
    assert!(answers.iter().all(|answer| answer == "7"), "{answers:?}");
    let loads = metric(&server, "wisp_model_loads_total{model=\"digits\",version=\"1\"}");
    assert_eq!(loads, woken + 1.0);
    await_state(&server, "digits", "idle");
    assert_eq!(states(), [is_in("idle")]);
    await_state(&server, "digits", "cold");
    let line = "wisp_model_evictions_total{model=\"digits\",version=\"1\",reason=\"idle\"}";
    assert_eq!(metric(&server, line), 2.0);
    let log = server.stop().1;
    assert!(log.contains("model is cold: nobody asked for it"), "{log}");
}

#[test]
fn what_is_needed_least_makes_room_and_what_is_used_stays() {
    let scratch = scratch();
    // Room for the large one alone.
    let flags = ["--memory-budget-mib", "22", "--deadline-ms", "8000"];
    let server = Server::start_admin(&scratch.path().join("state"), &[], &flags);
    let large = large_bundle(scratch.path(), "large", "");
    server.wisp_ok(&["deploy", text(&large)]);
    assert_eq!(state(&server, "large"), "idle");
    server.wisp_ok(&["deploy", text(&model("digits"))]);
    assert_eq!([state(&server, "large"), state(&server, "digits")], ["cold", "idle"]);

    assert_eq!(server.infer_raw("large", "text/plain", b"nothing").status, 200);
    assert_eq!([state(&server, "large"), state(&server, "digits")], ["idle", "cold"]);
    thread::scope(|scope| {
        let looping = scope.spawn(|| server.infer_raw("large", "text/plain", b"loop"));
        await_state(&server, "large", "prepared");
        let seven = read(&fixture("photos/seven.png"));
        let refused = server.infer_raw("digits", "image/png", &seven);
        insta::assert_snapshot!(refused.error(503, "not-ready"), @"model `digits` is not ready: it could not be loaded: the server's log says why");
        assert_eq!(refused.header("retry-after"), Some("5"));
        looping.join().expect("answered").error(504, "deadline");
    });
    // It is tried again a second after it failed.
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(seven(&server), "7");
    let log = server.stop().1;
    assert!(log.contains("of the memory budget of 22 MiB others use"), "{log}");
}

/// To load one holds up no request of another.
#[test]
fn others_answer_while_a_model_is_loaded() {
    let scratch = scratch();
    let flags = ["--idle-seconds", "1"];
    let server = Server::start_admin(&scratch.path().join("state"), &[], &flags);
    let large = large_bundle(scratch.path(), "large", "engine = \"rten\"\n");
    server.wisp_ok(&["deploy", text(&large)]);
    server.wisp_ok(&["deploy", text(&fixture("models/add.onnx"))]);
    await_state(&server, "large", "cold");
    let is_loaded = AtomicBool::new(false);
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let status = server.infer_raw("large", "text/plain", b"nothing").status;
            is_loaded.store(true, Ordering::SeqCst);
            status
        });
        // The first may have to load its own model.
        let mut answers = 0;
        while !is_loaded.load(Ordering::SeqCst) {
            assert_eq!(server.infer("add", &add_request()).status, 200);
            answers += usize::from(!is_loaded.load(Ordering::SeqCst));
        }
        assert_eq!(asked.join().expect("answered"), 200);
        assert!(answers > 1, "none came while it was loaded");
    });
}

/// Whoever waits for a model to be loaded is one of as many as may wait for their turn.
#[test]
fn no_more_wait_for_a_model_to_wake_than_may() {
    let scratch = scratch();
    let flags = ["--idle-seconds", "1", "--queue", "2", "--concurrency", "64"];
    let server = Server::start_admin(&scratch.path().join("state"), &[], &flags);
    let large = large_bundle(scratch.path(), "large", "engine = \"rten\"\n");
    server.wisp_ok(&["deploy", text(&large)]);
    await_state(&server, "large", "cold");
    let replies: Vec<_> = thread::scope(|scope| {
        let ask = || server.infer_raw("large", "text/plain", b"nothing");
        let asked: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().expect("answered")).collect()
    });
    let (answered, refused): (Vec<_>, Vec<_>) =
        replies.iter().partition(|reply| reply.status == 200);
    assert!(!answered.is_empty() && !refused.is_empty(), "{replies:?}");
    for reply in refused {
        assert!(reply.error(503, "overloaded").starts_with("model `large` is overloaded: "));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert_eq!(metric(&server, "wisp_model_waiting_requests{model=\"large\",version=\"1\"}"), 0.0);
}

#[test]
fn a_model_that_is_more_than_the_budget_is_not_loaded() {
    let scratch = scratch();
    let flags = ["--memory-budget-mib", "10"];
    let server = Server::start_admin(&scratch.path().join("state"), &[], &flags);
    let large = large_bundle(scratch.path(), "large", "");
    let refused = server.wisp(&["deploy", text(&large)]);
    assert!(!refused.status.success());
    let log = server.stop().1;
    assert!(log.contains("MiB, the memory budget is 10 MiB"), "{log}");
}

#[test]
fn eager_and_pinned_models_are_loaded_at_the_start() {
    let scratch = scratch();
    let state_folder = scratch.path().join("state");
    let flags = ["--idle-seconds", "2"];
    let server = Server::start_admin(&state_folder, &[], &flags);
    for loading in ["lazy", "eager", "pinned"] {
        let more = format!("loading = \"{loading}\"\n");
        let bundle =
            hostile_bundle(scratch.path(), loading, &format!("name = \"{loading}\"\n{more}"));
        server.wisp_ok(&["deploy", text(&bundle)]);
    }
    assert!(server.stop().0);

    let server = Server::start_admin(&state_folder, &[], &flags);
    let until = Instant::now() + Duration::from_secs(30);
    while server.get("/v2/health/ready").status != 200 {
        assert!(Instant::now() < until, "not ready");
    }
    let loads = |model: &str| {
        metric(&server, &format!("wisp_model_loads_total{{model=\"{model}\",version=\"1\"}}"))
    };
    assert_eq!(["lazy", "eager", "pinned"].map(loads), [0.0, 1.0, 1.0]);
    await_state(&server, "eager", "cold");
    assert_eq!(state(&server, "pinned"), "idle");
    assert!(server.wisp_ok(&["list", "pinned"]).contains("idle, pinned"));
    let pinned = scratch.path().join("pinned");
    let inspected = succeeded(&wisp().arg("inspect").arg(pinned).output().expect("wisp runs"));
    assert!(inspected.contains("loading     pinned"), "{inspected}");
}

#[test]
fn a_model_that_went_cold_gives_its_memory_back_to_the_system() {
    let resident = |server: &Server| {
        let status = server.process("status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: u64 =
            line.expect("a line").trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    };
    let scratch = scratch();
    let server = Server::start_admin(&scratch.path().join("state"), &[], &["--idle-seconds", "1"]);
    // Of an engine that keeps weights in memory of its own, not in a file that is mapped.
    let large = large_bundle(scratch.path(), "large", "engine = \"rten\"\n");
    server.wisp_ok(&["deploy", text(&large)]);
    await_state(&server, "large", "cold");
    let cold = resident(&server);
    assert_eq!(server.infer_raw("large", "text/plain", b"nothing").status, 200);
    let charged = metric(&server, "wisp_model_memory_bytes{model=\"large\",version=\"1\"}") as u64;
    let warm = resident(&server);
    assert!(charged > 10 << 20 && warm > cold + charged / 2, "{cold} {warm} {charged}");
    await_state(&server, "large", "cold");
    let again = resident(&server);
    assert!(again < warm - charged * 6 / 10, "{cold} {warm} {again} {charged}");
}
