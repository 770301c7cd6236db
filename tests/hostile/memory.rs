//! Memory of the guest's, and of the host's that a guest can have it take.

use super::yard::{Yard, fails, says};

const MEMORY: &str = "needs more than its 64 MiB of memory";

#[test]
fn bombs_in_memory() {
    let yard = Yard::of_hostile("memory_mib = 64");
    yard.run(
        "hostile",
        &[
            fails(3, "grow", 500, "guest-memory", MEMORY),
            fails(5, "recurse", 500, "guest-trap", "call stack exhausted"),
            fails(5, "panic", 500, "guest-trap", "wasm `unreachable` instruction executed"),
        ],
    );
    let log = yard.stop();
    assert!(log.contains("it was told to panic"), "a guest's panic is told in the log:\n{log}");
}

/// What the host holds for a guest counts as the guest's own.
#[test]
fn sprays_of_what_the_host_holds() {
    let yard = Yard::of_hostile("memory_mib = 64");
    // What the first requests take stays.
    yard.run("hostile", &[says(8, "behave", "behave"), says(8, "compute well", "16 bytes")]);
    let before = yard.server.peak_mib();
    yard.run(
        "hostile",
        &[
            fails(8, "tensors", 500, "guest-memory", MEMORY),
            fails(8, "dimensions", 500, "guest-memory", MEMORY),
            fails(9, "handles tensors", 500, "guest-trap", "table"),
            fails(9, "handles errors", 500, "guest-trap", "table"),
            fails(9, "handles graphs", 500, "guest-trap", "table"),
            fails(9, "handles contexts", 500, "guest-trap", "handle limit exceeded"),
            fails(9, "errors", 500, "guest-trap", "table"),
            fails(9, "wasi-pollables", 500, "guest-trap", "table"),
            fails(6, "aliased", 500, "guest-trap", "too much data is being copied"),
        ],
    );
    // One after the other: the guest's memory, as much in tensors, and what one call may carry
    // (256 MiB), with room for the allocator's own ways.
    let peak = yard.server.peak_mib();
    assert!(peak < before + 600, "{before} MiB before, {peak} MiB at most");
    yard.stop();
}
