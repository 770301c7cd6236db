//! The house's rules about who may name what, as ARCHITECTURE.md gives them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The files of server/src that name any of `words` in code, without those in `rooms`.
fn offenders(words: &[&str], rooms: &[&str]) -> Vec<String> {
    let source = root().join("server/src");
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
    assert_eq!(offenders(words, rooms), Vec::<String>::new(), "only {rooms:?} may name {words:?}");
    // A rule that finds nothing anywhere guards nothing.
    assert!(!offenders(words, &[]).is_empty(), "nothing names {words:?} any more");
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
        ],
        &["serde_json"],
    );
    only(&["sandbox/", "nn/wasi.rs", "telemetry.rs"], &["wasmtime", "wasmparser"]);
    only(&["nn/", "telemetry.rs"], &["tract_"]);
    only(&["registry/", "store/layout.rs", "bundle/artifact.rs", "signature.rs"], &["oci_client"]);
    only(&["registry/", "cli/admin.rs", "cli/client.rs"], &["reqwest"]);
    only(&["signature.rs"], &["p256"]);
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
        ],
        &["fs::"],
    );
    only(&["sandbox/", "nn/", "repository/load.rs", "store/blobs.rs", "examine.rs"], &["unsafe "]);
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
        "deploy",
        "examine",
        "infer",
        "repository",
        "schedule",
        "turns",
        "stats",
        "registry",
        "store",
        "cache",
        "bundle",
        "signature",
        "sandbox",
        "nn",
        "compare",
        "log_levels",
        "tensor",
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
        assert_eq!(offenders(&above, &others), Vec::<String>::new(), "{room} imports upwards");
    }
}

#[test]
fn files_stay_readable() {
    for folder in ["server/src", "guests", "tests", "benches"] {
        for path in sources(&root().join(folder))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        {
            let lines = fs::read_to_string(&path).expect("a source file").lines().count();
            assert!(lines <= 450, "{}: {lines} lines, look for its second subject", path.display());
        }
    }
}
