//! Compiled plans of graphs: made when a bundle is first loaded, used from then on, and made again
//! where they are no good.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Server, add_request, fixture, model, scratch, succeeded, wisp};

fn plans(cache: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(cache).expect("a folder").map(|entry| entry.expect("an entry").path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "plan")).collect()
}

fn answer(server: &Server) -> String {
    let reply = server.infer("add", &add_request());
    assert_eq!(reply.status, 200);
    String::from_utf8(reply.body).expect("UTF-8")
}

#[test]
fn a_plan_is_used_until_it_is_damaged() {
    let scratch = scratch();
    let cache = scratch.path().join("cache");
    let flags = ["--cache", cache.to_str().expect("UTF-8"), "--log", "debug"];
    let serve = || {
        let server = Server::start_with(&[fixture("models/add.onnx")], &flags);
        let answer = answer(&server);
        (answer, server.stop().1)
    };
    let (first, log) = serve();
    assert!(!log.contains("loaded anew"), "{log}");
    let [plan] = &plans(&cache)[..] else { panic!("{:?}", plans(&cache)) };
    let whole = fs::read(plan).expect("a plan");
    assert_eq!(serve().0, first);

    for damaged in [&whole[..whole.len() - 1], &whole[..40], &[]] {
        fs::write(plan, damaged).expect("a file");
        let (answer, log) = serve();
        assert_eq!(answer, first);
        assert!(log.contains("graph `model` is loaded anew: its plan: "), "{log}");
        assert_eq!(fs::read(plan).expect("a plan"), whole, "it is made again");
    }
}

#[test]
fn a_deployment_leaves_a_plan() {
    let scratch = scratch();
    let (cache, state) = (scratch.path().join("cache"), scratch.path().join("state"));
    let flags = ["--cache", cache.to_str().expect("UTF-8")];
    let server = Server::start_admin(&state, &[], &flags);
    server.wisp_ok(&["deploy", fixture("models/add.onnx").to_str().expect("UTF-8")]);
    assert_eq!(plans(&cache).len(), 1);
    answer(&server);
}

/// An operator that a plan cannot hold would make each of their wakes as slow as the first load.
#[test]
fn the_example_models_have_plans() {
    let scratch = scratch();
    let cache = scratch.path().join("cache");
    let flags = ["--cache", cache.to_str().expect("UTF-8"), "--log", "debug"];
    let names = ["digits", "imagenet", "minilm"];
    let server = Server::start_with(&names.map(model), &flags);
    let until = Instant::now() + Duration::from_secs(60);
    while server.get("/v2/health/ready").status != 200 {
        assert!(Instant::now() < until, "{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(plans(&cache).len(), names.len(), "{}", server.log());
}

#[test]
fn what_the_disk_made_of_a_blob_is_not_served() {
    let scratch = scratch();
    let (cache, state) = (scratch.path().join("cache"), scratch.path().join("state"));
    let flags = ["--cache", cache.to_str().expect("UTF-8")];
    let serve = || Server::start_admin(&state, &[], &flags);
    let server = serve();
    server.wisp_ok(&["deploy", fixture("models/add.onnx").to_str().expect("UTF-8")]);
    let first = answer(&server);
    server.stop();

    let graph = fs::read(fixture("models/add.onnx")).expect("a graph");
    let blobs = fs::read_dir(state.join("blobs/sha256")).expect("blobs");
    let blobs = blobs.map(|entry| entry.expect("an entry").path());
    let blob = blobs.into_iter().find(|blob| fs::read(blob).expect("a blob") == graph);
    let blob = blob.expect("the graph's");
    fs::remove_file(&blob).expect("no blob");
    fs::write(&blob, [&graph[..graph.len() - 1], b"?"].concat()).expect("another");

    // Its plan does without the graph's file.
    let server = serve();
    assert_eq!(answer(&server), first);
    server.stop();
    fs::remove_file(&plans(&cache)[0]).expect("no plan");
    let server = serve();
    server.infer("add", &add_request()).error(503, "not-ready");
    let listed = server.wisp_ok(&["list", "add"]);
    assert!(listed.contains("is damaged, its content is sha256:"), "{listed}");
}

/// A process that a bundle broke out of could write anything to the folder that it keeps compiled
/// guests in: so that is its own.
#[test]
fn an_examination_hands_over_its_own_guest() {
    let scratch = scratch();
    let cache = scratch.path().join("cache");
    let digits = model("digits");
    let check = || {
        let check = wisp().arg("check").arg(&digits).arg("--cache").arg(&cache).output();
        succeeded(&check.expect("wisp runs"));
        let files = fs::read_dir(&cache).expect("a folder").map(|entry| entry.expect("an entry"));
        let mut names: Vec<_> = files.map(|file| file.file_name()).collect();
        names.sort();
        names
    };
    let names = check();
    let [code, description] = &names[..] else { panic!("{names:?}") };
    assert_eq!(Path::new(code).file_stem(), Path::new(description).file_stem());
    assert_eq!(check(), names);
}
