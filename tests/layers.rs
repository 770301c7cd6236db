//! The house's rules about who may name what, as ARCHITECTURE.md gives them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The files of `folder` that name any of `words` in code, without those in `rooms`.
fn offenders(folder: &str, words: &[&str], rooms: &[&str]) -> Vec<String> {
    let source = root().join(folder);
    let mut found = Vec::new();
    for path in sources(&source) {
        let name =
            path.strip_prefix(&source).expect("below it").to_str().expect("UTF-8").to_owned();
        if rooms.iter().any(|room| name.starts_with(room)) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn only(rooms: &[&str], words: &[&str]) {
    only_in("server/src", rooms, words);
}

#[track_caller]
fn only_in(folder: &str, rooms: &[&str], words: &[&str]) {
    let found = offenders(folder, words, rooms);
    assert_eq!(found, Vec::<String>::new(), "only {rooms:?} may name {words:?}");
    // A rule that finds nothing anywhere guards nothing.
    assert!(!offenders(folder, words, &[]).is_empty(), "nothing names {words:?} any more");
}

#[test]
fn each_engine_has_its_room() {
    let only = |rooms: &[&str], words: &[&str]| only_in("engine/src", rooms, words);
    only(&["tract/"], &["tract_onnx::prelude", "tract_hir", "tract_core", "wisp_kernels"]);
    only(&["rten/"], &["use rten"]);
    only(&["onnxruntime/"], &["ort_sys", "libloading"]);
    only(&["memory.rs"], &["mimalloc"]);
    only(&["clock.rs"], &["libc::"]);
    only(
        &[
            "clock.rs",
            "guard.rs",
            "memory.rs",
            "tract/bodies.rs",
            "tract/compiled/parts.rs",
            "tract/file.rs",
            "tract/team.rs",
            "tract/values.rs",
            "tract/fuse/",
            "tract/operators/layout.rs",
            "onnxruntime/",
        ],
        &["unsafe "],
    );
    let kernels = fs::read_to_string(root().join("engine/kernels/Cargo.toml")).expect("a manifest");
    let dependencies = kernels.split_once("[dependencies]").map_or("", |(_, rest)| rest.trim());
    assert_eq!(dependencies.lines().count(), 1, "the kernels need nobody");
    assert!(dependencies.starts_with("bytes = "), "but for memory that many hold");
}

#[test]
fn each_library_has_its_room() {
    only(&["api/"], &["axum", "hyper", "tonic::"]);
    // The documents that are kept and sent are JSON; requests are `api`'s alone.
    only(
        &[
            "api/",
            "cache.rs",
            "bundle/artifact.rs",
            "store/",
            "signature.rs",
            "examine.rs",
            "cli/",
            "repository/load.rs",
            "usage.rs",
        ],
        &["serde_json"],
    );
    only(&["sandbox/", "nn/wasi.rs", "telemetry.rs"], &["wasmtime", "wasmparser"]);
    only(&["telemetry.rs"], &["tract_"]);
    only(&["registry/", "store/layout.rs", "bundle/artifact.rs", "signature.rs"], &["oci_client"]);
    only(&["registry/", "cli/admin.rs", "cli/client.rs", "cli/usage.rs"], &["reqwest"]);
    only(&["signature.rs"], &["p256"]);
    only(&["confine.rs"], &["landlock::", "seccompiler::", "libc::"]);
    only(&["config.rs"], &["env::var"]);
    only(
        &[
            "bundle/folder.rs",
            "store/",
            "cache.rs",
            "config.rs",
            "cli/",
            "sandbox/pool.rs",
            "signature.rs",
            "watch.rs",
            "examine.rs",
            "api_keys.rs",
            "memory.rs",
            "usage.rs",
            "confine.rs",
        ],
        &["fs::"],
    );
    only(
        &["sandbox/", "repository/load.rs", "store/blobs.rs", "cache.rs", "examine.rs"],
        &["unsafe "],
    );
    only(&["cli/", "config.rs", "lib.rs", "main.rs", "telemetry.rs"], &["anyhow"]);
}

#[test]
fn rooms_import_downwards_only() {
    // From the top; each may name those after it.
    let order = [
        "main",
        "cli",
        "telemetry",
        "config",
        "watch",
        "api",
        "api_keys",
        "deploy",
        "examine",
        "infer",
        "overhead",
        "usage",
        "repository",
        "response_cache",
        "schedule",
        "turns",
        "stats",
        "registry",
        "store",
        "cache",
        "bundle",
        "signature",
        "confine",
        "sandbox",
        "nn",
        "cpu",
        "log_levels",
        "memory",
        "digest",
        "error",
    ];
    for (index, room) in order.iter().enumerate() {
        let above = order[..index]
            .iter()
            .flat_map(|above| [format!("crate::{above}::"), format!("crate::{above};")]);
        let above: Vec<String> = above.chain(["crate::{".to_owned()]).collect();
        let above: Vec<&str> = above.iter().map(String::as_str).collect();
        let others: Vec<&str> =
            order.iter().filter(|other| *other != room).copied().chain(["lib.rs"]).collect();
        // `telemetry` takes the log format from `config`, which it stands beside.
        assert_eq!(
            offenders("server/src", &above, &others),
            Vec::<String>::new(),
            "{room} imports upwards"
        );
    }
}

#[test]
fn files_stay_readable() {
    for folder in ["server/src", "engine", "guests", "tests", "benches"] {
        for path in sources(&root().join(folder))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        {
            let lines = fs::read_to_string(&path).expect("a source file").lines().count();
            assert!(lines <= 450, "{}: {lines} lines, look for its second subject", path.display());
        }
    }
}
