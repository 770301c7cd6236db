//! Calls of the host's functions with what they must refuse: by an error that the guest can
//! read, or by a trap where it broke the rules.

use super::wat::Guest;
use super::yard::{Yard, fails, says};
use crate::support::scratch;

#[test]
fn tensors_that_lie() {
    let yard = Yard::of_hostile("memory_mib = 64");
    let invalid = "ErrorCode::InvalidArgument";
    yard.run(
        "hostile",
        &[
            says(7, "compute well", "16 bytes"),
            says(7, "compute short", invalid),
            says(7, "compute long", invalid),
            says(7, "compute ragged", invalid),
            says(7, "compute empty", invalid),
            says(7, "compute wrapping", invalid),
            says(7, "compute no-dimensions", invalid),
            says(7, "compute many-dimensions", invalid),
            says(7, "compute zero-and-some", invalid),
            says(7, "compute zero", "0 bytes"),
            says(12, "compute giant", invalid),
            says(12, "compute doubles", invalid),
            says(12, "compute bytes", invalid),
            says(12, "twice", "graph input `x` came twice"),
            // Shown in part.
            says(12, "other-name", "ErrorCode::InvalidArgument, 2"),
            says(12, "compute well", "16 bytes"),
        ],
    );
    yard.stop();
}

#[test]
fn handles_that_are_not_there() {
    let yard = Yard::of_hostile("memory_mib = 64");
    yard.run(
        "hostile",
        &[
            fails(10, "after-drop", 500, "guest-trap", "unknown handle index"),
            fails(10, "after-compute", 500, "guest-trap", "unknown handle index"),
            fails(10, "made-up-handle", 500, "guest-trap", "unknown handle index"),
            fails(10, "wrong-handle", 500, "guest-trap", "handle index"),
        ],
    );
    yard.stop();
}

#[test]
fn graphs_that_are_not_the_guests() {
    let yard = Yard::of_hostile("memory_mib = 64");
    let unknown = "ErrorCode::NotFound";
    yard.run(
        "hostile",
        &[
            says(11, "graph echo", "nothing"),
            says(11, "graph model", unknown),
            // Another bundle's.
            says(11, "graph add", unknown),
            says(11, "graph ../add/model", unknown),
            says(11, "graph /etc/passwd", unknown),
            says(11, "graph echo.onnx", unknown),
            says(11, "graph ", unknown),
            // Shown in part.
            says(11, "long-name", "ErrorCode::NotFound, 2"),
            // None can be brought, in whatever encoding.
            says(11, "load", "ErrorCode::InvalidEncoding"),
            fails(11, "read-asset", 500, "guest-failed", "can be read in `prepare` only"),
        ],
    );
    yard.stop();
}

/// WASI is linked for the toolchains that ask for it, and there is nothing in it.
#[test]
fn wasi_is_empty() {
    let yard = Yard::of_hostile("memory_mib = 64");
    let denied = "access-denied";
    yard.run(
        "hostile",
        &[
            says(17, "wasi-environment", "0"),
            says(17, "wasi-arguments", "0"),
            says(17, "wasi-cwd", "None"),
            says(17, "wasi-folders", "0"),
            says(17, "wasi-tcp", denied),
            says(17, "wasi-udp", denied),
            says(17, "wasi-resolve", "permanent-resolver-failure"),
            says(17, "wasi-read", "closed"),
            fails(17, "wasi-random", 500, "guest-trap", "exceeds limit"),
            fails(17, "wasi-insecure-random", 500, "guest-trap", "exceeds limit"),
            fails(17, "wasi-exit", 500, "guest-trap", "exit"),
            says(15, "wasi-print", "wasi-print"),
            fails(15, "wasi-zeroes", 500, "guest-trap", ""),
            says(15, "wasi-write-much", "written"),
        ],
    );
    let log = yard.stop();
    assert!(log.contains("stdout") && log.contains("printed through WASI"), "{log}");
    assert!(log.contains("has reached its limit"), "{log}");
}

#[test]
fn what_a_guest_prints_is_capped_and_cannot_forge_lines() {
    let yard = Yard::of_hostile("memory_mib = 64");
    let forged = "a text\r\nwisp-error: none\r\nFORGED line";
    yard.run(
        "hostile",
        &[says(15, "print", "print"), fails(24, "forge", 500, "guest-failed", forged)],
    );
    let log = yard.stop();
    assert!(log.contains("line 0"), "{log}");
    assert!(log.contains("has reached its limit"), "{log}");
    assert!(log.len() < 400_000, "{} bytes", log.len());
    assert!(!log.lines().any(|line| line.starts_with("FORGED")), "{log}");
}

/// A guest may call the host in `infer` only, not where it is called to give or take memory.
#[test]
fn host_calls_where_none_may_be_made() {
    const CALL: &str = "(drop (call $now))";
    const DEEP: &str = "(func $deep (drop (call $now)) (call $deep))";
    let folder = scratch();
    let limits = "[limits]\nmemory_mib = 16\n";
    let bundle = |name: &str, parts: Guest| parts.bundle(folder.path(), name, limits);
    let bundles = [
        bundle("infer", Guest { infer: CALL, ..Guest::GOOD }),
        bundle("deep", Guest { fields: DEEP, infer: "(call $deep)", ..Guest::GOOD }),
        bundle("realloc", Guest { realloc: CALL, ..Guest::GOOD }),
        bundle("post-return", Guest { post_return: CALL, ..Guest::GOOD }),
        bundle("realloc-traps", Guest { realloc: "unreachable", ..Guest::GOOD }),
        bundle("post-return-traps", Guest { post_return: "unreachable", ..Guest::GOOD }),
    ];
    let yard = Yard::of_bundles(&bundles, &[]);
    yard.run("infer", &[says(16, "anything", "ok")]);
    yard.run("deep", &[fails(5, "anything", 500, "guest-trap", "call stack exhausted")]);
    for model in ["realloc", "post-return"] {
        yard.run(model, &[fails(16, "anything", 500, "guest-trap", "cannot leave component")]);
    }
    for model in ["realloc-traps", "post-return-traps"] {
        // Twice: nothing calls into an instance that trapped.
        let trap = || fails(16, "anything", 500, "guest-trap", "`unreachable`");
        yard.run(model, &[trap(), trap()]);
    }
    yard.stop();
}
