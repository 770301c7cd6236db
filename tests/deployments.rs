//! Bundles deployed to a running server, and traffic moved between their versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::{
    Server, add_request, fixture, hostile_bundle, model, read, refused, scratch, succeeded, wisp,
};

/// Packs a bundle; the file lies in `folder`.
fn pack(folder: &Path, bundle: &Path, file: &str) -> PathBuf {
    let out = folder.join(file);
    succeeded(&wisp().arg("pack").arg(bundle).arg("-o").arg(&out).output().expect("wisp runs"));
    out
}

/// A bundle of the hostile guest that answers `stamp` with its own stamp, twice.
fn stamped(folder: &Path, stamp: &str) -> String {
    let bundle = hostile_bundle(
        folder,
        &format!("stamped-{stamp}"),
        &format!("name = \"stamped\"\n[settings]\nstamp = \"{stamp}\"\n"),
    );
    let file = pack(folder, &bundle, &format!("{stamp}.wisp"));
    file.to_str().expect("UTF-8").to_owned()
}

fn stamp(server: &Server) -> (String, Vec<String>) {
    let reply = server.infer_raw("stamped", "text/plain", b"stamp");
    (reply.json()["model_version"].as_str().expect("a version").to_owned(), reply.strings("did"))
}

fn list(server: &Server, model: &str) -> Value {
    let listed: Value =
        serde_json::from_str(&server.wisp_ok(&["list", model, "--json"])).expect("JSON");
    listed[0].clone()
}

fn traffic(server: &Server, model: &str) -> Vec<(String, u64)> {
    let listed = list(server, model);
    let versions = listed["versions"].as_array().expect("a list");
    let share = |version: &Value| {
        (
            version["version"].as_str().expect("a text").to_owned(),
            version["traffic"].as_u64().expect("a number"),
        )
    };
    versions.iter().map(share).filter(|(_, percent)| *percent > 0).collect()
}

#[test]
fn deployed_served_and_still_there_after_a_restart() {
    let scratch = scratch();
    let state = scratch.path().join("state");
    let server = Server::start_admin(&state, &[], &[]);
    server.get("/v2/models/digits").error(404, "unknown-model");
    let said = server.wisp_ok(&["deploy", model("digits").to_str().expect("UTF-8")]);
    assert!(said.contains("golden/seven.png: passed"), "{said}");
    assert!(said.ends_with("digits version 1 is deployed, and gets all traffic\n"), "{said}");
    let seven = read(&fixture("photos/seven.png"));
    assert_eq!(server.infer_raw("digits", "image/png", &seven).strings("label")[0], "7");
    let said = server.wisp_ok(&[
        "deploy",
        model("digits").to_str().expect("UTF-8"),
        "--version",
        "2",
        "--dry-run",
    ]);
    assert!(
        said.ends_with(
            "digits version 2 would be deployed, and gets none yet: `wisp promote digits 2`\n"
        ),
        "{said}"
    );
    assert_eq!(list(&server, "digits")["versions"].as_array().map(Vec::len), Some(1));
    // The same bundle again is no new version.
    let said = server.wisp_ok(&["deploy", model("digits").to_str().expect("UTF-8")]);
    assert_eq!(said, "digits version 1 was deployed already, and gets all traffic\n");
    assert!(server.stop().0);

    let server = Server::start_admin(&state, &[], &[]);
    assert_eq!(list(&server, "digits")["versions"][0]["state"], "cold");
    assert_eq!(server.get("/v2/models/digits/ready").json()["ready"], true);
    assert_eq!(server.infer_raw("digits", "image/png", &seven).strings("label")[0], "7");
    assert_eq!(list(&server, "digits")["versions"][0]["state"], "idle");
    server.wisp_ok(&["undeploy", "digits"]);
    server.infer_raw("digits", "image/png", &seven).error(404, "unknown-model");
    let log = server.stop().1;
    assert!(log.contains("unused blobs are removed"), "{log}");
    let blobs = fs::read_dir(state.join("blobs/sha256")).expect("a folder").count();
    assert_eq!(blobs, 0);
}

#[test]
fn promoted_split_shadowed_and_rolled_back() {
    let scratch = scratch();
    let folder = scratch.path();
    let server = Server::start_admin(&folder.join("state"), &[], &[]);
    for name in ["a", "b", "c"] {
        server.wisp_ok(&["deploy", &stamped(folder, name)]);
    }
    assert_eq!(stamp(&server).1, ["a", "a"]);
    assert_eq!(traffic(&server, "stamped"), [("1".to_owned(), 100)]);

    // Nothing changes by a dry run.
    let said = server.wisp_ok(&["promote", "stamped", "2", "--dry-run"]);
    assert!(said.starts_with("nothing is changed; it would be:\n"), "{said}");
    assert_eq!(stamp(&server).1, ["a", "a"]);

    server.wisp_ok(&["promote", "stamped", "2"]);
    assert_eq!(stamp(&server), ("2".to_owned(), vec!["b".to_owned(), "b".to_owned()]));
    server.wisp_ok(&["split", "stamped", "2=90", "3=10"]);
    let versions: Vec<_> = (0..100).map(|_| stamp(&server).0).collect();
    let share = |wanted: &str| versions.iter().filter(|version| *version == wanted).count();
    assert_eq!((share("2"), share("3")), (90, 10));

    server.wisp_ok(&["shadow", "stamped", "1=50%"]);
    (0..100).for_each(|_| drop(stamp(&server)));
    // The shadow answers in its own time; `a` is neither `b` nor `c`.
    let mut seen = Value::Null;
    for _ in 0..1000 {
        seen = list(&server, "stamped")["shadow"].clone();
        let count = |name: &str| seen[name].as_u64().expect("a number");
        if count("different") + count("skipped") == 50 {
            break;
        }
    }
    assert_eq!((&seen["equal"], &seen["failed"]), (&json!(0), &json!(0)), "{seen}");
    assert!(seen["different"].as_u64() > Some(0), "{seen}");

    server.wisp_ok(&["rollback", "stamped"]);
    assert_eq!(traffic(&server, "stamped"), [("2".to_owned(), 100)]);
    server.wisp_ok(&["rollback", "stamped"]);
    assert_eq!(traffic(&server, "stamped"), [("1".to_owned(), 100)]);
    // What the shadow had is what it was compared with now.
    server.wisp_ok(&["shadow", "stamped", "3=1%"]);
    server.wisp_ok(&["promote", "stamped", "3"]);
    assert_eq!(list(&server, "stamped")["shadow"], Value::Null);
}

#[test]
fn a_policy_says_which_versions_can_be_asked_for() {
    let scratch = scratch();
    let folder = scratch.path();
    let server = Server::start_admin(&folder.join("state"), &[], &[]);
    for name in ["a", "b", "c"] {
        server.wisp_ok(&["deploy", &stamped(folder, name)]);
    }
    let asked =
        |version: &str| server.get(&format!("/v2/models/stamped/versions/{version}")).status;
    assert_eq!(["1", "2", "3"].map(asked), [200, 200, 200]);
    assert_eq!(server.get("/v2/models/stamped").json()["versions"], json!(["1", "2", "3"]));
    server.wisp_ok(&["policy", "stamped", "latest=1"]);
    assert_eq!(["1", "2", "3"].map(asked), [200, 404, 200]);
    server.wisp_ok(&["policy", "stamped", "specific=2"]);
    assert_eq!(["1", "2", "3"].map(asked), [200, 200, 404]);
    server.wisp_ok(&["policy", "stamped", "all"]);
    let one = server.post(
        "/v2/models/stamped/versions/3/infer",
        &[("content-type", "text/plain")],
        b"stamp",
    );
    assert_eq!(one.strings("did"), ["c", "c"]);
}

#[test]
fn changes_that_make_no_sense() {
    let scratch = scratch();
    let folder = scratch.path();
    let add = fixture("models/add.onnx");
    let server = Server::start_admin(&folder.join("state"), std::slice::from_ref(&add), &[]);
    server.wisp_ok(&["deploy", &stamped(folder, "a")]);
    let b = stamped(folder, "b");
    let fails = |args: &[&str]| refused(&server.wisp(args));
    insta::assert_snapshot!(fails(&["promote", "stamped", "7"]), @"wisp: model `stamped` has no version `7`, it has 1");
    insta::assert_snapshot!(fails(&["promote", "nobody", "7"]), @"wisp: unknown model `nobody`");
    insta::assert_snapshot!(fails(&["rollback", "stamped"]), @"wisp: model `stamped` has no earlier traffic to roll back to");
    insta::assert_snapshot!(fails(&["split", "stamped", "1=90"]), @"wisp: split: expected 100 percent in all, got 90");
    insta::assert_snapshot!(fails(&["split", "stamped", "1=x"]), @"wisp: `1=x`: expected VERSION=PERCENT, as 4=10");
    insta::assert_snapshot!(fails(&["split", "stamped", "1=50", "1=50"]), @"wisp: `1=50`: the version came twice");
    insta::assert_snapshot!(fails(&["shadow", "stamped", "1=5%"]), @"wisp: version `1` of model `stamped` has all traffic, and cannot be its own shadow");
    insta::assert_snapshot!(fails(&["undeploy", "stamped", "1"]), @"wisp: version `1` of model `stamped` gets 100 % of the traffic: promote another first, or undeploy the model");
    insta::assert_snapshot!(fails(&["undeploy", "add"]), @"wisp: model `add` is served from a path, and cannot be changed from here");
    insta::assert_snapshot!(fails(&["deploy", add.to_str().expect("UTF-8")]), @"wisp: model `add` is served from a path, and cannot be changed from here");
    insta::assert_snapshot!(fails(&["policy", "stamped", "newest"]), @"wisp: policy `newest`: expected all, latest=N or specific=VERSION,…");
    insta::assert_snapshot!(fails(&["undeploy", "../x"]), @r#"wisp: the name "../x" may have letters, digits, `-`, `_` and `.` only"#);
    insta::assert_snapshot!(fails(&["deploy", &b, "--name", "a/b"]), @r#"wisp: the name "a/b" may have letters, digits, `-`, `_` and `.` only"#);
    let taken = fails(&["deploy", &b, "--version", "1"]);
    assert!(
        taken.contains("a version never changes") && taken.matches("sha256:").count() == 2,
        "{taken}"
    );
    assert_eq!(stamp(&server).1, ["a", "a"]);
    assert_eq!(server.infer("add", &add_request()).status, 200);
}

#[test]
fn no_request_is_lost_or_mixed_while_versions_switch() {
    let scratch = scratch();
    let folder = scratch.path();
    let server = Server::start_admin(&folder.join("state"), &[], &[]);
    for name in ["a", "b"] {
        server.wisp_ok(&["deploy", &stamped(folder, name)]);
    }
    server.wisp_ok(&["shadow", "stamped", "2=20%"]);
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let (version, stamps) = stamp(&server);
                    let expected = if version == "1" { "a" } else { "b" };
                    assert_eq!(stamps, [expected, expected], "version {version}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..50 {
            let traffic = json!({ ["2", "1"][round % 2]: 100 }).to_string();
            let reply = server.admin("PUT", "models/stamped/traffic", &[], traffic.as_bytes());
            assert_eq!(reply.status, 200);
            let before = answered.load(Ordering::Relaxed);
            while answered.load(Ordering::Relaxed) < before + 10 {
                thread::yield_now();
            }
        }
        assert_eq!(server.admin("POST", "models/stamped/rollback", &[], b"").status, 200);
        done.store(true, Ordering::Relaxed);
    });
    assert!(answered.into_inner() >= 500);
    let log = server.stop().1;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn an_examination_that_hangs_crashes_or_eats_is_a_refusal() {
    let scratch = scratch();
    let folder = scratch.path();
    let state = folder.join("state");
    let server = Server::start_admin(
        &state,
        &[],
        &["--examine-seconds", "6", "--examine-memory-mib", "300"],
    );
    server.wisp_ok(&["deploy", &stamped(folder, "a")]);
    let refuses =
        |bundle: &Path| refused(&server.wisp(&["deploy", bundle.to_str().expect("UTF-8")]));
    let prepare =
        |how: &str| hostile_bundle(folder, how, &format!("[settings]\nprepare = \"{how}\"\n"));
    insta::assert_snapshot!(refuses(&prepare("loop")), @"wisp: the bundle is refused: the examination took longer than 6 s");
    insta::assert_snapshot!(refuses(&prepare("fail")), @"wisp: the bundle is refused: guest: `prepare` failed: it was told to fail");
    insta::assert_snapshot!(refuses(&fixture("models/huge.onnx")), @"wisp: the bundle is refused: the examination needs more than 300 MiB of memory");
    insta::assert_snapshot!(refuses(&fixture("models/float8.onnx")), @"wisp: the bundle is refused: graph `model`: output `y` has ONNX's element type FLOAT8E4M3FN, which the protocol lacks: give it another, with a Cast in the graph");

    let golden = |expect: Value| {
        let bundle = hostile_bundle(
            folder,
            "golden",
            "[[tests]]\ninput = \"order\"\nexpect = \"did.json\"\n",
        );
        fs::write(bundle.join("order"), "stamp").expect("a file");
        fs::write(bundle.join("did.json"), expect.to_string()).expect("a file");
        bundle
    };
    let output = |data: Value| {
        let shape = data.as_array().map(Vec::len);
        json!({"outputs": [{"name": "did", "datatype": "BYTES", "shape": [shape], "data": data}]})
    };
    insta::assert_snapshot!(refuses(&golden(output(json!(["x", "x"])))), @"wisp: the bundle is refused: golden test `order`: output `did`: its BYTES elements differ");
    insta::assert_snapshot!(refuses(&golden(output(json!([""])))), @"wisp: the bundle is refused: golden test `order`: output `did`: expected BYTES [1], got BYTES [2]");
    insta::assert_snapshot!(refuses(&golden(json!({"outputs": []}))), @"wisp: the bundle is refused: golden test `order`: its expected answer has no outputs to compare");
    server.wisp_ok(&["deploy", golden(output(json!(["", ""]))).to_str().expect("UTF-8")]);
    let contract = hostile_bundle(folder, "contract", "[contract]\ninputs = []\noutputs = []\n");
    insta::assert_snapshot!(refuses(&contract), @r#"wisp: the bundle is refused: the manifest's contract is {"inputs":[],"outputs":[]}, the guest's is {"inputs":[{"name":"do","datatype":"BYTES","shape":[-1]}],"outputs":[{"name":"did","datatype":"BYTES","shape":[-1]}]}"#);

    assert_eq!(stamp(&server).1, ["a", "a"]);
    assert_eq!(fs::read_dir(state.join("staging")).expect("a folder").count(), 0);
    let (ended_well, log) = server.stop();
    assert!(ended_well && !log.contains("panic"), "{log}");
}

#[test]
fn the_admin_api_is_for_its_owner() {
    let scratch = scratch();
    let folder = scratch.path();
    let server = Server::start_admin(&folder.join("open"), &[], &[]);
    let asks = |headers: &[(&str, &str)]| server.admin("GET", "models", headers, b"");
    assert_eq!(asks(&[]).json(), json!({"models": []}));
    insta::assert_snapshot!(asks(&[("origin", "https://example.com")]).error(401, "unauthorized"), @"the admin API takes nothing from web pages, unless it has a token");
    insta::assert_snapshot!(asks(&[("host", "rebound.example.com")]).error(401, "unauthorized"), @"expected this machine's own address as Host, got `rebound.example.com`");
    server.get("/admin/v1/models").error(404, "unknown-path");

    let token = folder.join("token");
    fs::write(&token, "0123456789abcdef-and-more\n").expect("a file");
    let token = token.to_str().expect("UTF-8");
    let server = Server::start_admin(&folder.join("closed"), &[], &["--admin-token-file", token]);
    insta::assert_snapshot!(server.admin("GET", "models", &[], b"").error(401, "unauthorized"), @"expected the admin token in the header `Authorization: Bearer …`");
    server
        .admin("GET", "models", &[("authorization", "Bearer 0123456789abcdef")], b"")
        .error(401, "unauthorized");
    insta::assert_snapshot!(refused(&server.wisp(&["list"])), @"wisp: expected the admin token in the header `Authorization: Bearer …`");
    assert_eq!(server.wisp_ok(&["list", "--json", "--token-file", token]).trim(), "[]");

    let starts = |flags: &[&str]| {
        let state = folder.join("other");
        refused(
            &wisp().args(["serve", "--state"]).arg(state).args(flags).output().expect("wisp runs"),
        )
    };
    insta::assert_snapshot!(starts(&["--admin-listen", "0.0.0.0:0"]).lines().last().unwrap_or_default(), @"wisp: setting admin-listen: 0.0.0.0:0 is not loopback, so admin-token-file must name a token");
}

#[test]
fn the_admin_api_says_what_it_expects() {
    let scratch = scratch();
    let server = Server::start_admin(&scratch.path().join("state"), &[], &[]);
    let error = |method: &str, path: &str, body: &str| {
        let reply =
            server.admin(method, path, &[("content-type", "application/json")], body.as_bytes());
        let kind = reply.header("wisp-error").unwrap_or_default().to_owned();
        format!("{} {kind}: {}", reply.status, reply.error(reply.status, &kind))
    };
    insta::assert_snapshot!(error("GET", "nothing", ""), @"404 unknown-path: nothing is served at `/admin/v1/nothing`");
    insta::assert_snapshot!(error("POST", "models", ""), @"405 wrong-method: method POST is not allowed at `/admin/v1/models`");
    insta::assert_snapshot!(error("PUT", "bundles?verison=1", "{}"), @"400 invalid-input: query: Failed to deserialize query string: verison: unknown field `verison`, expected one of `name`, `version`, `activate`, `dry_run`, `source`");
    insta::assert_snapshot!(error("PUT", "bundles", "{}"), @"400 invalid-input: the body is not what is expected: missing field `reference` at line 1 column 2");
    insta::assert_snapshot!(error("PUT", "bundles", "{\"reference\": \"digits:1\"}"), @"400 invalid-input: `digits:1`: expected oci://host/name:tag or oci://host/name@sha256:…: it does not begin with oci://");
    insta::assert_snapshot!(error("PUT", "models/x/traffic", "{\"1\": 300}"), @"400 invalid-input: the body is not what is expected: invalid value: integer `300`, expected u8 at line 1 column 9");
    insta::assert_snapshot!(error("PUT", "models/x/traffic", &"x".repeat(3_000_000)), @"413 too-large: the body has more than 65536 bytes, the limit here");
    let openapi = server.admin("GET", "openapi.json", &[], b"").json();
    assert_eq!(openapi["openapi"], "3.1.0");
    // Each path of the document is one of the API's, whatever it says to such a request.
    for (path, methods) in openapi["paths"].as_object().expect("an object") {
        let path = path.replace("{model}", "m").replace("{version}", "1");
        let path = path.strip_prefix("/admin/v1/").expect("below it");
        let methods = methods.as_object().expect("an object").keys();
        for method in methods.filter(|key| *key != "parameters") {
            let reply = server.admin(&method.to_uppercase(), path, &[], b"");
            assert_ne!(reply.header("wisp-error"), Some("unknown-path"), "{method} {path}");
            assert_ne!(reply.status, 405, "{method} {path}");
        }
    }
}

#[test]
fn a_watched_folder() {
    let scratch = scratch();
    let folder = scratch.path();
    let watched = folder.join("models");
    fs::create_dir(&watched).expect("a folder");
    let flags = ["--models", watched.to_str().expect("UTF-8")];
    let server = Server::start_admin(&folder.join("state"), &[], &flags);
    // Slowly enough for the folder to be looked at, and never longer than a test may take.
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let so = (0..600).any(|_| {
            is_so() || {
                thread::sleep(std::time::Duration::from_millis(50));
                false
            }
        });
        assert!(so, "{what}\n{}", server.log());
    };
    let answers = |expected: &'static str| {
        let reply = server.infer_raw("stamped", "text/plain", b"stamp");
        reply.status == 200 && reply.strings("did") == [expected, expected]
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| stamped(folder, name));
    let place = watched.join("stamped.wisp");
    let half = read(Path::new(&a));
    fs::write(&place, &half[..half.len() / 2]).expect("a file");
    until("half a file is refused", &|| server.log().contains("is not deployed"));
    fs::copy(&a, &place).expect("a file");
    until("a file appears", &|| answers("a"));
    fs::copy(&b, &place).expect("a file");
    until("it changes", &|| answers("b"));
    fs::write(&place, b"nothing").expect("a file");
    until("a broken one is refused", &|| server.log().matches("is not deployed").count() == 2);
    assert!(answers("b"));
    fs::copy(&c, &place).expect("a file");
    until("it is mended", &|| answers("c"));
    // The one before stays for a rollback, those before it go.
    let versions = list(&server, "stamped")["versions"].as_array().map(Vec::len);
    assert_eq!(versions, Some(2));
    let other = watched.join("other.wisp");
    fs::copy(&a, &other).expect("a file");
    until("the name is taken", &|| server.log().contains("comes from stamped.wisp already"));
    fs::remove_file(&other).expect("removed");
    fs::remove_file(&place).expect("removed");
    until("it vanishes", &|| server.get("/v2/models/stamped").status == 404);
}
