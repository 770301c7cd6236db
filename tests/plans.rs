//! Compiled plans of graphs: made when a bundle is examined or first loaded, used from then on,
//! and made again where they are no good.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Server, add_request, fixture, scratch};

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
fn an_examination_leaves_a_plan() {
    let scratch = scratch();
    let (cache, state) = (scratch.path().join("cache"), scratch.path().join("state"));
    let flags = ["--cache", cache.to_str().expect("UTF-8")];
    let server = Server::start_admin(&state, &[], &flags);
    server.wisp_ok(&["deploy", fixture("models/add.onnx").to_str().expect("UTF-8")]);
    assert_eq!(plans(&cache).len(), 1);
    answer(&server);
}
