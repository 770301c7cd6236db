//! Memory of the guest's, and of the host's that a guest can have it take.

use std::fs;

use serde_json::json;

use super::yard::{Yard, fails, says};
use crate::support::{fixture, scratch};

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

/// A graph whose tensors are as large as the client says: its run ends, and nothing else.
#[test]
fn sizes_that_a_client_has_a_graph_compute() {
    let scratch = scratch();
    let bundle = |engine: &str| {
        let bundle = scratch.path().join(engine);
        fs::create_dir(&bundle).expect("a folder");
        let manifest = format!(
            "engine = \"{engine}\"\n[graphs]\nmodel = \"ones.onnx\"\n[limits]\ngraph_mib = 48\n"
        );
        fs::write(bundle.join("wisp.toml"), manifest).expect("a manifest");
        fs::copy(fixture("models/ones.onnx"), bundle.join("ones.onnx")).expect("a fixture");
        bundle
    };
    let engines = ["tract", "rten"];
    let yard = Yard::of_bundles(&engines.map(bundle), &[]);
    let ask = |engine: &str, count: i64| {
        let inputs = json!([{"name": "x", "datatype": "INT64", "shape": [1], "data": [count]}]);
        yard.server.infer(engine, &json!({"inputs": inputs}))
    };
    for engine in engines {
        assert_eq!(ask(engine, 1000).floats("y"), [1000.0]);
        let before = yard.server.peak_mib();
        for _ in 0..4 {
            let refused = yard.beside(|| ask(engine, 50 << 20)).error(500, "graph-memory");
            let told =
                format!("the graph of model `{engine}` needs more than its 48 MiB of memory");
            assert_eq!(refused, told);
        }
        assert_eq!(yard.failures(engine, "graph-memory"), 4);
        let peak = yard.server.peak_mib();
        assert!(peak < before + 150, "{engine}: {before} MiB before, {peak} MiB at most");
        assert_eq!(ask(engine, 1001).floats("y"), [1001.0]);
    }
    yard.stop();
}
