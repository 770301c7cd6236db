//! Which engine runs a graph: as the manifest says, or as it was measured.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Server, fixture, model, refused, scratch, succeeded, wisp};

/// A bundle of one graph as it is, with `more` on top of its manifest.
fn bundle(folder: &Path, name: &str, graph: &str, more: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(&path).expect("a folder");
    let manifest = format!("{more}\n[graphs]\nmodel = \"model.onnx\"\n");
    fs::write(path.join("wisp.toml"), manifest).expect("a manifest");
    let copied = fs::copy(fixture(&format!("models/{graph}.onnx")), path.join("model.onnx"));
    copied.expect("a fixture");
    path
}

fn check(bundle: &Path) -> Value {
    let output = wisp().arg("check").arg(bundle).arg("--json").output().expect("wisp runs");
    serde_json::from_str(&succeeded(&output)).expect("a report")
}

#[test]
fn a_check_measures_every_engine() {
    let report = check(&model("digits"));
    let engine = &report["graphs"][0]["engine"];
    let chosen = engine["engine"].as_str().expect("a name");
    assert!(["tract", "rten"].contains(&chosen), "{engine}");
    let candidates = engine["candidates"].as_array().expect("a list");
    let names: Vec<&Value> = candidates.iter().map(|candidate| &candidate["engine"]).collect();
    assert_eq!(names, ["tract", "rten"]);
    for candidate in candidates {
        assert!(candidate["cpu_us"].as_u64().is_some_and(|spent| spent > 0), "{candidate}");
        assert!(candidate["difference"].as_f64().is_some_and(|off| off < 1e-3), "{candidate}");
    }
    let text = wisp().arg("check").arg(model("digits")).output().expect("wisp runs");
    let text = succeeded(&text);
    assert!(
        text.contains("\nengine      tract (tract ") || text.contains("\nengine      rten (tract "),
        "{text}"
    );
}

#[test]
fn a_manifest_names_its_engine() {
    let scratch = scratch();
    for name in ["tract", "rten"] {
        let path = bundle(scratch.path(), name, "scale", &format!("engine = \"{name}\""));
        assert_eq!(check(&path)["graphs"][0]["engine"]["engine"], name);
    }
    let path = bundle(scratch.path(), "other", "scale", "engine = \"tensorflow\"");
    let output = wisp().arg("check").arg(path).output().expect("wisp runs");
    let said = refused(&output);
    assert!(
        said.contains("unknown variant `tensorflow`, expected one of `auto`, `tract`"),
        "{said}"
    );
    let path = bundle(scratch.path(), "native", "scale", "engine = \"onnxruntime\"");
    let output = wisp().arg("check").arg(&path).output().expect("wisp runs");
    let said = refused(&output);
    assert!(
        said.contains("ONNX Runtime's library is not there: `--onnxruntime` names it"),
        "{said}"
    );
    let output = wisp().arg("check").arg(&path).args(["--onnxruntime", "/none.so"]).output();
    let said = refused(&output.expect("wisp runs"));
    assert!(said.contains("ONNX Runtime at /none.so: "), "{said}");
}

#[test]
fn a_graph_that_one_engine_refuses_runs_on_the_other() {
    let scratch = scratch();
    let path = bundle(scratch.path(), "loop", "loop", "");
    let report = check(&path);
    let engine = &report["graphs"][0]["engine"];
    assert_eq!(engine["engine"], "rten", "{engine}");
    assert!(engine["reason"].as_str().is_some_and(|reason| reason.contains("tract refuses it: ")));
    let server = Server::start(&[path]);
    let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, -0.5]}]);
    assert_eq!(server.infer("loop", &json!({"inputs": inputs})).floats("y"), [8.0, -4.0]);
}

/// Whatever the golden tests hold to be right: here that sums are of 32 bits, as rten has them.
#[test]
fn golden_tests_decide_against_an_engine() {
    let scratch = scratch();
    let golden = "[[tests]]\ninput = \"x.json\"\nexpect = \"y.json\"\n";
    let bundle = |name: &str, engine: &str| {
        let path = bundle(scratch.path(), name, "int64", engine);
        let manifest = path.join("wisp.toml");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        fs::write(manifest, text + golden).expect("a manifest");
        let tensor = |name: &str, data: [i64; 2]| json!([{"name": name, "datatype": "INT64", "shape": [2], "data": data}]);
        let x = json!({"inputs": tensor("x", [i64::from(i32::MAX), -1])});
        let y = json!({"outputs": tensor("y", [i64::from(i32::MIN), 0])});
        for (name, request) in [("x.json", x), ("y.json", y)] {
            fs::write(path.join(name), request.to_string()).expect("a file");
        }
        path
    };
    let report = check(&bundle("open", ""));
    let engine = &report["graphs"][0]["engine"];
    assert_eq!(engine["engine"], "rten", "{engine}");
    assert_eq!(engine["candidates"][1]["engine"], "tract", "{engine}");
    assert_eq!(engine["candidates"][1]["problem"], "its INT64 elements differ", "{engine}");
    // Where the manifest names one, it has no other to turn to.
    let output = wisp().arg("check").arg(bundle("named", "engine = \"tract\"")).output();
    let said = refused(&output.expect("wisp runs"));
    assert!(said.contains("golden test `x.json`: output `y`: its INT64 elements differ"), "{said}");
}

/// The third engine, which is not in the binary: from PyPI's wheel.
#[test]
fn onnxruntime_serves_where_it_is_named() {
    let Some(library) = std::env::var_os("WISP_TEST_ONNXRUNTIME") else {
        println!("WISP_TEST_ONNXRUNTIME is not set: ONNX Runtime is not tested");
        return;
    };
    let library = library.to_str().expect("UTF-8");
    let scratch = scratch();
    let native = bundle(scratch.path(), "native", "scale", "engine = \"onnxruntime\"");
    let open = bundle(scratch.path(), "open", "int64", "");
    let output = wisp().arg("check").arg(&open).args(["--onnxruntime", library, "--json"]).output();
    let report: Value =
        serde_json::from_str(&succeeded(&output.expect("wisp runs"))).expect("a report");
    let candidates = report["graphs"][0]["engine"]["candidates"].as_array().expect("a list");
    let names: Vec<&Value> = candidates.iter().map(|candidate| &candidate["engine"]).collect();
    assert_eq!(names, ["tract", "rten", "onnxruntime"]);

    let flags = ["--onnxruntime", library];
    let server =
        Server::start_admin(&scratch.path().join("state"), std::slice::from_ref(&native), &flags);
    let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]);
    let answered = server.infer("native", &json!({"inputs": inputs}));
    assert_eq!(answered.floats("y"), [2.0, 4.0, 6.0, 8.0]);
    // Examined in a child, which has it, too.
    fs::rename(&native, scratch.path().join("deployed")).expect("a folder");
    server.wisp_ok(&["deploy", scratch.path().join("deployed").to_str().expect("UTF-8")]);
    assert_eq!(
        server.infer("deployed", &json!({"inputs": inputs})).floats("y"),
        [2.0, 4.0, 6.0, 8.0]
    );
    let usage = server.get("/usage").json();
    assert!(usage.to_string().contains("\"model\":\"deployed\""), "{usage}");
    assert!(server.stop().0);
}

#[test]
fn a_deployed_version_keeps_what_was_measured() {
    let (state, scratch) = (scratch(), scratch());
    let path = bundle(scratch.path(), "loop", "loop", "");
    let listed = |server: &Server| -> Value {
        let list = server.wisp_ok(&["list", "--json"]);
        let list: Value = serde_json::from_str(&list).expect("a list");
        list[0]["versions"][0]["engines"].clone()
    };
    let server = Server::start_admin(state.path(), &[], &[]);
    server.wisp_ok(&["deploy", path.to_str().expect("UTF-8")]);
    let before = listed(&server);
    assert_eq!(before["model"]["engine"], "rten");
    let text = server.wisp_ok(&["list"]);
    assert!(
        text.contains("version 1, graph model: rten (rten runs it; tract refuses it: "),
        "{text}"
    );
    let inspect = |more: &[&str]| {
        let state = ["--state", state.path().to_str().expect("UTF-8")];
        let output = wisp().arg("inspect").arg(&path).args(state).args(more).output();
        succeeded(&output.expect("wisp runs"))
    };
    let text = inspect(&[]);
    assert!(
        text.contains("\ndeployed    loop, version 1\nmeasured    model: rten (rten"),
        "{text}"
    );
    let inspected: Value = serde_json::from_str(&inspect(&["--json"])).expect("JSON");
    assert_eq!(inspected["deployed"][0]["engines"], before);
    drop(server);
    let server = Server::start_admin(state.path(), &[], &[]);
    assert_eq!(listed(&server), before);
    let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]);
    assert_eq!(server.infer("loop", &json!({"inputs": inputs})).floats("y"), [8.0]);
}

/// Whatever an engine makes of them, they end no process that serves.
#[test]
fn hostile_graphs_are_refused_by_a_server_that_serves_on() {
    let state = scratch();
    let flags = ["--examine-seconds", "5", "--examine-memory-mib", "400"];
    let server = Server::start_admin(state.path(), &[fixture("models/scale.onnx")], &flags);
    let reasons = [
        ("doubled", "the examination needs more than 400 MiB of memory"),
        ("endless", "the examination took longer than 5 s"),
        ("circle", "needs what is made from its own output"),
        ("terabytes", "asks for too much memory"),
        ("elsewhere", "the weights of `w` are in another file"),
    ];
    let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]);
    for (name, reason) in reasons {
        let path = fixture(&format!("hostile/{name}.onnx"));
        let said = refused(&server.wisp(&["deploy", path.to_str().expect("UTF-8")]));
        assert!(said.contains(reason), "{name}: {said}");
        let reply = server.infer("scale", &json!({"inputs": inputs}));
        assert_eq!(reply.floats("y"), [2.0, 4.0, 6.0, 8.0]);
    }
    let (ended_well, log) = server.stop();
    assert!(ended_well && !log.contains("panic"), "{log}");
}
