//! Guests that trap, loop, grow and lie: each fails its own request with its own error, and
//! the next request is fine.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::support::{Reply, Server, add_request, fixture, hostile_bundle, scratch};

/// The hostile guest with 64 MiB.
fn serve(folder: &Path) -> Server {
    Server::start(&[hostile_bundle(folder, "hostile", "[limits]\nmemory_mib = 64\n")])
}

fn order(server: &Server, order: &str) -> Reply {
    server.infer_raw("hostile", "text/plain", order.as_bytes())
}

/// An unknown order is answered with itself.
fn assert_unharmed(server: &Server) {
    assert_eq!(order(server, "behave").strings("did"), ["behave"]);
}

#[test]
fn traps_are_the_request_s_own() {
    let folder = scratch();
    let server = serve(folder.path());
    assert_unharmed(&server);
    insta::assert_snapshot!(order(&server, "panic").error(500, "guest-trap"), @"the guest of model `hostile` trapped: wasm trap: wasm `unreachable` instruction executed");
    insta::assert_snapshot!(order(&server, "recurse").error(500, "guest-trap"), @"the guest of model `hostile` trapped: wasm trap: call stack exhausted");
    insta::assert_snapshot!(order(&server, "fail").error(500, "guest-failed"), @"the guest of model `hostile` failed: it was told to fail");
    insta::assert_snapshot!(order(&server, "unsupported").error(501, "unsupported"), @"it was told not to");
    assert_unharmed(&server);
    let (ended_well, log) = server.stop();
    assert!(ended_well);
    assert!(log.contains("it was told to panic"), "a guest's panic is told in the log:\n{log}");
    assert!(log.contains("late=false live_sandboxes=0"), "{log}");
}

#[test]
fn a_guest_that_never_ends_is_ended_at_its_deadline() {
    let folder = scratch();
    let limits = "[limits]\nmemory_mib = 64\ndeadline_ms = 200\n";
    let server = Server::start(&[hostile_bundle(folder.path(), "hostile", limits)]);
    assert_unharmed(&server);
    for wanted in ["loop", "copy"] {
        let reply = order(&server, wanted);
        insta::allow_duplicates! {
            insta::assert_snapshot!(reply.error(504, "deadline"), @"model `hostile` did not answer within 200ms");
        }
        assert_unharmed(&server);
    }
    // Quick requests run inline: one that turns out to loop must not keep its thread.
    (0..50).for_each(|_| assert_unharmed(&server));
    order(&server, "loop").error(504, "deadline");
    let (ended_well, log) = server.stop();
    assert!(ended_well && log.contains("late=false live_sandboxes=0"), "{log}");
}

#[test]
fn memory_past_the_limit_is_refused() {
    let folder = scratch();
    let server = serve(folder.path());
    insta::assert_snapshot!(order(&server, "grow").error(500, "guest-memory"), @"the guest of model `hostile` needs more than its 64 MiB of memory");
    // So are the tensors that the host holds for it.
    order(&server, "tensors").error(500, "guest-memory");
    assert_unharmed(&server);
}

#[test]
fn a_guest_is_held_to_its_contract() {
    let folder = scratch();
    let server = serve(folder.path());
    insta::assert_snapshot!(order(&server, "no-output").error(500, "guest-failed"), @"the guest of model `hostile` failed: it gave no output `did`");
    insta::assert_snapshot!(order(&server, "wrong-datatype").error(500, "guest-failed"), @"the guest of model `hostile` failed: output `did` is FP32 [1], its contract says BYTES [-1]");
    insta::assert_snapshot!(order(&server, "wrong-length").error(500, "guest-failed"), @"the guest of model `hostile` failed: output `did`: shape [2] asks for 2 BYTES elements, got 1");
    insta::assert_snapshot!(order(&server, "invalid-utf8").error(400, "invalid-input"), @"output `did` holds bytes that are not UTF-8, which JSON cannot carry: ask for it with `binary_data`");
}

#[test]
fn a_guest_reaches_nothing_that_is_not_its_own() {
    let folder = scratch();
    let server = serve(folder.path());
    insta::assert_snapshot!(order(&server, "read-asset").error(500, "guest-failed"), @"the guest of model `hostile` failed: the bundle can be read in `prepare` only");
    insta::assert_snapshot!(order(&server, "other-graph").error(500, "guest-failed"), @"the guest of model `hostile` failed: graph `model`: ErrorCode::NotFound: the bundle has no graph `model`");
}

#[test]
fn what_a_guest_prints_is_capped_and_cannot_forge_lines() {
    let folder = scratch();
    let server = serve(folder.path());
    order(&server, "print");
    let (_, log) = server.stop();
    assert!(log.contains("line 0"), "{log}");
    assert!(log.contains("has reached its limit"), "{log}");
    assert!(log.len() < 400_000, "{} bytes", log.len());
    assert!(!log.lines().any(|line| line.starts_with("FORGED")), "{log}");
}

/// However slots are reset; the second way is that of machines with swap.
#[test]
fn nothing_of_one_request_is_seen_by_the_next() {
    let folder = scratch();
    let bundle = hostile_bundle(folder.path(), "hostile", "[limits]\nmemory_mib = 64\n");
    for page_scan in ["true", "false"] {
        let server = Server::start_with(std::slice::from_ref(&bundle), &["--page-scan", page_scan]);
        for _ in 0..20 {
            assert_eq!(order(&server, "write").strings("did"), ["write"]);
            assert_eq!(order(&server, "scan").strings("did"), ["0"]);
            order(&server, "write-and-panic").error(500, "guest-trap");
            assert_eq!(order(&server, "scan").strings("did"), ["0"]);
        }
    }
}

/// A component of another toolchain asks for WASI: it is there, and there is nothing in it.
#[test]
fn wasi_is_linked_and_empty() {
    let folder = scratch();
    let server = serve(folder.path());
    assert_eq!(order(&server, "wasi-environment").strings("did"), ["0"]);
    assert_eq!(order(&server, "wasi-folders").strings("did"), ["0"]);
    assert_eq!(order(&server, "wasi-print").strings("did"), ["wasi-print"]);
    assert_unharmed(&server);
    let (ended_well, log) = server.stop();
    assert!(ended_well && log.contains("late=false live_sandboxes=0"), "{log}");
    assert!(log.contains("stdout") && log.contains("printed through WASI"), "{log}");
    assert!(log.contains("has reached its limit"), "{log}");
}

/// As many loops as may run, and more: health and another model answer meanwhile.
#[test]
fn slow_guests_hold_up_nobody_else() {
    let folder = scratch();
    let limits = "[limits]\ndeadline_ms = 3000\n";
    let server = Server::start(&[
        hostile_bundle(folder.path(), "hostile", limits),
        fixture("models/add.onnx"),
    ]);
    let add = add_request();
    for _ in 0..20 {
        assert_unharmed(&server);
        assert_eq!(server.infer("add", &add).status, 200);
    }
    std::thread::scope(|scope| {
        let loops: Vec<_> = (0..12).map(|_| scope.spawn(|| order(&server, "loop"))).collect();
        let started = Instant::now();
        let mut answered = 0;
        while loops.iter().any(|request| !request.is_finished()) {
            assert_eq!(server.get("/v2/health/live").status, 200);
            assert_eq!(server.infer("add", &add).status, 200);
            answered += 1;
        }
        // Were they held up, a few would have come through at best: each round would have
        // waited for a loop's end.
        assert!(answered > 20, "{answered} rounds in {:?}", started.elapsed());
        for request in loops {
            request.join().expect("answered").error(504, "deadline");
        }
    });
}

/// A graph is left between two of its nodes.
#[test]
fn a_compute_ends_at_its_deadline() {
    let server =
        Server::start_with(&[fixture("models/matmul_slow.onnx")], &["--deadline-ms", "100"]);
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [3]}]});
    insta::assert_snapshot!(server.infer("matmul_slow", &body).error(504, "deadline"), @"model `matmul_slow` did not answer within 100ms");
    let (ended_well, log) = server.stop();
    assert!(ended_well && log.contains("late=false live_sandboxes=0"), "{log}");
}
