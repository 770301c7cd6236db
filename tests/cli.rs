//! The command line: one input without a server, settings and where they come from, the cache.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Server, fixture, model, scratch, wisp};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn failed(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(&output.stdout));
    assert!(output.stdout.is_empty());
    text(&output.stderr)
}

#[test]
fn infer_without_a_server() {
    let seven = fixture("photos/seven.png");
    let answer = succeeded(
        &wisp().arg("infer").arg(model("digits")).arg(&seven).output().expect("wisp runs"),
    );
    assert_eq!(answer["outputs"][0]["data"][0], "7");

    let scratch = scratch();
    let request = scratch.path().join("request.json");
    fs::write(&request, json!({"id": "1", "inputs": [{"name": "x", "datatype": "INT64", "shape": [2], "data": [41, -1]}]}).to_string()).expect("a file");
    let answer = succeeded(
        &wisp()
            .arg("infer")
            .arg(fixture("models/int64.onnx"))
            .arg(&request)
            .output()
            .expect("wisp runs"),
    );
    assert_eq!(answer["outputs"][0]["data"], json!([42, 0]));

    let mut piped = wisp()
        .arg("infer")
        .arg(fixture("models/echo.onnx"))
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("wisp runs");
    piped.stdin.take().expect("piped").write_all(&1.5f32.to_le_bytes()).expect("sent");
    assert_eq!(
        succeeded(&piped.wait_with_output().expect("it ends"))["outputs"][0]["data"],
        json!([1.5])
    );
}

#[test]
fn a_small_address_space_will_do() {
    // KiB of address space: too little for a pool of 4 GiB a memory; too little for any pool.
    for (kib, warning) in [(40_000_000, "bounds checks"), (4_000_000, "without a pool")] {
        let wisp = wisp();
        let script = format!("ulimit -v {kib}; exec \"$0\" infer \"$1\" \"$2\"");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(wisp.get_program()).arg(model("digits"));
        shell.arg(fixture("photos/seven.png"));
        shell.envs(wisp.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let output = shell.output().expect("sh runs");
        assert_eq!(succeeded(&output)["outputs"][0]["data"][0], "7");
        assert!(text(&output.stderr).contains(warning), "{}", text(&output.stderr));
    }
}

#[test]
fn a_packed_bundle_is_the_bundle() {
    let scratch = scratch();
    let packed = |bundle: &Path, file: &str| {
        let out = scratch.path().join(file);
        let output = wisp().arg("pack").arg(bundle).arg("-o").arg(&out).arg("--json").output();
        let said = succeeded(&output.expect("wisp runs"));
        (out, said["digest"].as_str().expect("a text").to_owned())
    };
    let (file, digest) = packed(&model("digits"), "a.wisp");
    // The same bytes each time, and from what was unpacked.
    let (again, _) = packed(&model("digits"), "b.wisp");
    assert!(fs::read(&file).expect("packed") == fs::read(&again).expect("packed"));
    let folder = scratch.path().join("unpacked");
    let unpack = wisp().arg("unpack").arg(&file).arg("-o").arg(&folder).output();
    assert!(unpack.expect("wisp runs").status.success());
    assert_eq!(packed(&folder, "c.wisp").1, digest);

    let seven = fixture("photos/seven.png");
    let answer = wisp().arg("infer").arg(&file).arg(&seven).output().expect("wisp runs");
    assert_eq!(succeeded(&answer)["outputs"][0]["data"][0], "7");
    let server = Server::start(std::slice::from_ref(&file));
    let answer = server.infer_raw("digits", "image/png", &fs::read(&seven).expect("a fixture"));
    assert_eq!(answer.strings("label")[0], "7");

    let inspected = wisp().arg("inspect").arg(&file).arg("--json").output().expect("wisp runs");
    let inspected = succeeded(&inspected);
    assert_eq!(inspected["digest"], digest);
    assert_eq!(inspected["manifest"]["limits"], json!({"memory_mib": 128, "deadline_ms": 2000}));
    assert_eq!(
        inspected["contract"]["inputs"],
        json!([{"name": "image", "datatype": "BYTES", "shape": [1]}])
    );
    assert_eq!(inspected["component"]["exports"], json!(["wisp:model/handler@0.1.0"]));
    let checked = wisp().arg("check").arg(&file).arg("--json").output().expect("wisp runs");
    let checked = succeeded(&checked);
    assert_eq!(checked["digest"], digest);
    assert_eq!(checked["tests"][0]["input"], "golden/seven.png");
}

#[test]
fn infer_says_what_is_wrong() {
    let run = |model: &str, file: &str| {
        failed(&wisp().args(["infer", model, file]).output().expect("wisp runs"))
    };
    let echo = fixture("models/echo.onnx");
    let echo = echo.to_str().expect("UTF-8");
    insta::assert_snapshot!(run("/nowhere.onnx", echo), @"wisp: model `nowhere`: /nowhere.onnx: No such file or directory (os error 2)");
    insta::assert_snapshot!(run(echo, "/nowhere"), @"wisp: /nowhere: No such file or directory (os error 2)");
    let seven = fixture("photos/seven.png");
    let odd = run(echo, seven.to_str().expect("UTF-8"));
    assert!(odd.starts_with("wisp: input `x`: "), "{odd}");
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let scratch = scratch();
    let file = scratch.path().join("wisp-server.toml");
    fs::write(&file, "deadline-ms = 1000\nqueue = 7\nbody-limit-mib = 3\nlog-format = \"text\"\n")
        .expect("a file");
    let mut command = wisp();
    command.args(["serve", "--listen", "256.0.0.1:0"]).arg(fixture("models/add.onnx"));
    assert!(failed(&command.output().expect("wisp runs")).contains("256.0.0.1:0"));

    let server = Server::start_with(
        &[fixture("models/add.onnx")],
        &["--config", file.to_str().expect("UTF-8"), "--queue", "9"],
    );
    let (ended_well, log) = server.stop();
    assert!(ended_well);
    for line in [
        "setting queue = 9 (flag)",
        "setting body-limit-mib = 3 (file)",
        "setting deadline-ms = 1000 (file)",
        "setting memory-mib = 256 (default)",
        "(environment)",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
}

#[test]
fn wrong_settings_are_named() {
    let scratch = scratch();
    let file = scratch.path().join("wisp-server.toml");
    fs::write(&file, "quue = 7\n").expect("a file");
    let add = fixture("models/add.onnx");
    let serve = |flags: &[&str]| {
        failed(&wisp().arg("serve").arg(&add).args(flags).output().expect("wisp runs"))
    };
    assert!(serve(&["--config", file.to_str().expect("UTF-8")]).contains("unknown field `quue`"));
    insta::assert_snapshot!(serve(&["--threads", "0"]), @"wisp: setting threads: expected 1 to 1024, got 0");
    assert!(serve(&["--deadline-ms", "soon"]).contains("invalid value 'soon'"));
    assert!(serve(&["--log", "wisp=nonsense"]).contains("setting log"));
}

#[test]
fn a_cache_that_others_can_write_to_is_not_used() {
    let scratch = scratch();
    let cache = scratch.path().join("cache");
    fs::create_dir(&cache).expect("a folder");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).expect("its mode");
    let server = Server::start_with(
        &[fixture("models/add.onnx")],
        &["--cache", cache.to_str().expect("UTF-8")],
    );
    assert_eq!(server.get("/v2/models/add").status, 200);
    let (_, log) = server.stop();
    assert!(log.contains("that no other can write to"), "{log}");
    assert_eq!(fs::read_dir(&cache).expect("a folder").count(), 0);
}

#[test]
fn damaged_cached_code_is_made_again() {
    let scratch = scratch();
    let cache = scratch.path().join("cache");
    let flags = ["--cache", cache.to_str().expect("UTF-8")];
    let serve = || {
        let server = Server::start_with(&[fixture("models/add.onnx")], &flags);
        assert_eq!(server.get("/v2/models/add").status, 200);
        server.stop().1
    };
    serve();
    let files: Vec<_> = fs::read_dir(&cache)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(files.len(), 3, "compiled code, what it is, the graph's plan: {files:?}");
    assert!(!serve().contains("damaged"));
    for file in
        files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "cwasm"))
    {
        let mut code = fs::read(file).expect("a file");
        let middle = code.len() / 2;
        code[middle] ^= 1;
        fs::write(file, code).expect("a file");
    }
    assert!(serve().contains("damaged"));
    assert!(!serve().contains("damaged"));
}
