//! What a server makes of its state folder, its keys and its watched folder when it starts anew.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::registry::keys;
use crate::support::{
    Server, add_request, fixture, hostile_bundle, model, refused, scratch, succeeded, wisp,
};

fn pack(source: &Path, out: &Path) {
    succeeded(&wisp().arg("pack").arg(source).arg("-o").arg(out).output().expect("wisp runs"));
}

fn stamped(folder: &Path, stamp: &str, out: &Path) {
    let more = format!("name = \"stamped\"\n[settings]\nstamp = \"{stamp}\"\n");
    pack(&hostile_bundle(folder, &format!("source-{stamp}"), &more), out);
}

fn stamp(server: &Server) -> Option<String> {
    let reply = server.infer_raw("stamped", "text/plain", b"stamp");
    (reply.status == 200).then(|| reply.strings("did")[0].clone())
}

/// Waits as long as the folder takes to be looked at, and never longer than a test may.
fn until(server: &Server, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}\n{}", server.log());
}

#[test]
fn an_operators_traffic_survives_the_watched_folder() {
    let scratch = scratch();
    let folder = scratch.path();
    let (state, watched) = (folder.join("state"), folder.join("models"));
    fs::create_dir(&watched).expect("a folder");
    let place = watched.join("stamped.wisp");
    let flags = ["--models", watched.to_str().expect("UTF-8")];
    let server = Server::start_admin(&state, &[], &flags);
    stamped(folder, "a", &place);
    until(&server, "it appears", || stamp(&server).as_deref() == Some("a"));
    stamped(folder, "b", &place);
    until(&server, "it changes", || stamp(&server).as_deref() == Some("b"));
    server.wisp_ok(&["rollback", "stamped"]);
    assert_eq!(stamp(&server).as_deref(), Some("a"));
    assert!(server.stop().0);

    // The file is still b's; the operator went back to a.
    let other = watched.join("add.wisp");
    pack(&fixture("models/add.onnx"), &other);
    let server = Server::start_admin(&state, &[], &flags);
    until(&server, "the folder was looked at", || server.get("/v2/models/add").status == 200);
    assert_eq!(stamp(&server).as_deref(), Some("a"));
    assert!(server.stop().0);

    // A volume that is not mounted yet is an empty folder, and another one.
    fs::rename(&watched, folder.join("volume")).expect("moved away");
    fs::create_dir(&watched).expect("a folder");
    let server = Server::start_admin(&state, &[], &flags);
    until(&server, "the folder was looked at", || server.log().contains("its models stay"));
    assert_eq!(stamp(&server).as_deref(), Some("a"));
    assert_eq!(server.infer("add", &add_request()).status, 200);
    fs::remove_dir(&watched).expect("empty");
    fs::rename(folder.join("volume"), &watched).expect("moved back");
    fs::remove_file(&other).expect("removed");
    until(&server, "what vanished is gone", || server.get("/v2/models/add").status == 404);
    assert_eq!(stamp(&server).as_deref(), Some("a"));
}

#[test]
fn keys_that_are_trusted_later() {
    let scratch = scratch();
    let folder = scratch.path();
    let state = folder.join("state");
    let (alice, alice_public) = keys(folder, "alice");
    let file = folder.join("stamped.wisp");
    stamped(folder, "a", &file);
    let file = file.to_str().expect("UTF-8");
    let server = Server::start_admin(&state, &[], &[]);
    server.wisp_ok(&["deploy", file]);
    assert_eq!(stamp(&server).as_deref(), Some("a"));
    assert!(server.stop().0);

    let server = Server::start_admin(&state, &[], &["--trusted-keys", &alice_public]);
    assert_eq!(stamp(&server), None);
    // No other change brings it back.
    server.wisp_ok(&["policy", "stamped", "latest=1"]);
    assert_eq!(stamp(&server), None);
    let listed: Value =
        serde_json::from_str(&server.wisp_ok(&["list", "stamped", "--json"])).expect("JSON");
    assert_eq!(listed[0]["versions"][0]["state"], "failed");
    assert!(refused(&server.wisp(&["deploy", file, "--activate"])).contains("it is not signed"));
    succeeded(&wisp().args(["sign", file, "--key", &alice]).output().expect("wisp runs"));
    server.wisp_ok(&["deploy", file, "--activate"]);
    assert_eq!(stamp(&server).as_deref(), Some("a"));

    let serve =
        |flags: &[&str]| refused(&wisp().arg("serve").args(flags).output().expect("wisp runs"));
    let said = serve(&[file, "--trusted-keys", &alice_public]);
    assert!(
        said.ends_with("what is served from a PATH has no signature: deploy it instead"),
        "{said}"
    );
}

#[test]
fn an_index_that_is_lost_can_be_put_back() {
    let scratch = scratch();
    let folder = scratch.path();
    let state = folder.join("state");
    let server = Server::start_admin(&state, &[], &[]);
    server.wisp_ok(&["deploy", model("digits").to_str().expect("UTF-8")]);
    assert!(server.stop().0);
    fs::rename(state.join("index.json"), folder.join("index.json")).expect("moved away");
    let server = Server::start_admin(&state, &[], &[]);
    assert_eq!(server.get("/v2/models/digits").status, 404);
    let (_, log) = server.stop();
    assert!(log.contains("nothing is deployed, nothing is removed"), "{log}");
    fs::rename(folder.join("index.json"), state.join("index.json")).expect("moved back");
    let server = Server::start_admin(&state, &[], &[]);
    assert_eq!(server.get("/v2/models/digits").status, 200);
}

#[test]
fn files_of_the_same_content_are_one_blob() {
    let scratch = scratch();
    let folder = scratch.path();
    let bundle = hostile_bundle(folder, "stamped", "assets = [\"one.txt\", \"two.txt\"]\n");
    fs::write(bundle.join("one.txt"), "same").expect("a file");
    fs::write(bundle.join("two.txt"), "same").expect("a file");
    let server = Server::start_admin(&folder.join("state"), &[], &[]);
    server.wisp_ok(&["deploy", bundle.to_str().expect("UTF-8")]);
    assert_eq!(stamp(&server).as_deref(), Some(""));
}

#[test]
fn one_broken_archive_stops_no_other_model() {
    let scratch = scratch();
    let broken = scratch.path().join("broken.wisp");
    fs::write(&broken, "no archive").expect("a file");
    let server = Server::start(&[broken, fixture("models/add.onnx")]);
    assert_eq!(server.infer("add", &add_request()).status, 200);
    let said = server.get("/v2/models/broken").error(503, "not-ready");
    assert!(said.contains("the bundle is refused: "), "{said}");
}
