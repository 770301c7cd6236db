//! Answers that no guest may give.

use super::wat::Guest;
use super::yard::{Yard, fails};
use crate::support::scratch;

#[test]
fn a_guest_is_held_to_its_contract() {
    let yard = Yard::of_hostile("memory_mib = 64");
    yard.run(
        "hostile",
        &[
            fails(24, "fail", 500, "guest-failed", "failed: it was told to fail"),
            fails(24, "unsupported", 501, "unsupported", "it was told not to"),
            fails(24, "no-output", 500, "guest-failed", "it gave no output `did`"),
            fails(
                24,
                "wrong-datatype",
                500,
                "guest-failed",
                "output `did` is FP32 [1], its contract says BYTES [-1]",
            ),
            fails(
                24,
                "wrong-length",
                500,
                "guest-failed",
                "output `did`: shape [2] asks for 2 BYTES elements, got 1",
            ),
        ],
    );
    let reply = yard.order("hostile", "invalid-utf8");
    let said = reply.error(400, "invalid-input");
    assert!(said.contains("output `did` holds bytes that are not UTF-8"), "{said}");
    yard.stop();
}

#[test]
fn answers_that_are_too_large() {
    let yard = Yard::of_hostile("memory_mib = 64");
    let before = yard.server.peak_mib();
    yard.run(
        "hostile",
        &[
            fails(24, "huge-output", 500, "guest-trap", "too much data is being copied"),
            fails(24, "long-text", 500, "guest-failed", "xxx"),
        ],
    );
    let peak = yard.server.peak_mib();
    assert!(peak < before + 600, "{before} MiB before, {peak} MiB at most");
    let text = yard.order("hostile", "long-text").error(500, "guest-failed");
    assert!(text.len() < 10_000, "{} bytes", text.len());
    yard.stop();
}

/// What a guest says goes into bodies, where it is escaped, and into no header.
#[test]
fn headers_cannot_be_forged() {
    let yard = Yard::of_hostile("memory_mib = 64");
    let reply = yard.order("hostile", "forge-headers");
    assert_eq!(reply.strings("did"), ["it"]);
    assert_eq!(reply.header("wisp-error"), None);
    let name = "x\r\nwisp-error: none\r\n\r\n";
    assert_eq!(reply.json()["parameters"][name], name);
    let reply = yard.order("hostile", "forge");
    assert_eq!(reply.header("wisp-error"), Some("guest-failed"));
    yard.stop();
}

/// Answers that no toolchain would make: they point outside memory, or say what is not to be.
#[test]
fn answers_that_are_none() {
    let folder = scratch();
    let answer = |name: &str, infer: &'static str| {
        let limits = "[limits]\nmemory_mib = 16\n";
        Guest { infer, ..Guest::GOOD }.bundle(folder.path(), name, limits)
    };
    let bundles = [
        answer("outside", "(return (i32.const 0x7fff0000))"),
        answer("crooked", "(return (i32.const 257))"),
        answer("list-outside", "(i32.store (i32.const 264) (i32.const 0x7fffffff))"),
        answer("data-outside", "(i32.store (i32.const 312) (i32.const -1))"),
        answer("no-such-case", "(i32.store8 (i32.const 256) (i32.const 7))"),
        answer("no-such-datatype", "(i32.store8 (i32.const 296) (i32.const 99))"),
        answer("no-utf8", "(i32.store8 (i32.const 2) (i32.const 255))"),
    ];
    let yard = Yard::of_bundles(&bundles, &[]);
    for (model, reason) in [
        ("outside", "pointer out of bounds"),
        ("crooked", "not aligned"),
        ("list-outside", "out of bounds"),
        ("data-outside", "out of bounds"),
        ("no-such-case", "discriminant"),
        ("no-such-datatype", "discriminant"),
        ("no-utf8", "utf-8"),
    ] {
        yard.run(model, &[fails(24, "anything", 500, "guest-trap", reason)]);
    }
    yard.stop();
}
