//! A server killed at random points of a deployment: what it serves afterwards is what it served
//! before, or what was deployed, and its store is whole.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Server, add_request, fixture, scratch, succeeded, wisp};

/// Rounds where `WISP_CHAOS_ROUNDS` says nothing else.
const ROUNDS: u32 = 200;

/// Longer than a deployment of so small a bundle takes, so that some rounds kill after it, ms.
const LONGEST_MS: u64 = 60;

/// A bundle whose digest is another each round, and whose compiled guest is the same.
fn bundle(folder: &Path, round: u32) -> Vec<u8> {
    let source = folder.join("add");
    fs::create_dir_all(&source).expect("a folder");
    fs::copy(fixture("models/add.onnx"), source.join("add.onnx")).expect("a fixture");
    let request = serde_json::json!({"id": round.to_string(), "inputs": add_request()["inputs"]});
    fs::write(source.join("one.json"), request.to_string()).expect("a file");
    let answer = r#"{"outputs":[{"name":"sum","datatype":"FP32","shape":[1,4],"data":[2,4,6,8]}]}"#;
    fs::write(source.join("two.json"), answer).expect("a file");
    let manifest = format!(
        "name = \"add\"\nversion = \"{round}\"\nengine = \"tract\"\n[graphs]\nmodel = \"add.onnx\"\n[[tests]]\ninput = \"one.json\"\nexpect = \"two.json\"\n"
    );
    fs::write(source.join("wisp.toml"), manifest).expect("a file");
    let packed = folder.join("add.wisp");
    succeeded(&wisp().arg("pack").arg(&source).arg("-o").arg(&packed).output().expect("wisp runs"));
    fs::read(packed).expect("packed")
}

fn kill(state: &Path) {
    // Not the server's own child process here, which is `timeout`.
    let pid = fs::read_to_string(state.join("wisp.lock")).expect("a server has the store");
    let killed = Command::new("kill").args(["-KILL", pid.trim()]).stderr(Stdio::null()).status();
    assert!(killed.is_ok_and(|status| status.success()), "process {pid}");
}

#[test]
fn killed_at_any_moment_it_serves_the_old_or_the_new() {
    let rounds = std::env::var("WISP_CHAOS_ROUNDS").ok();
    let rounds: u32 = rounds.map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let scratch = scratch();
    let state = scratch.path().join("state");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut served = None;
    let (mut old, mut new) = (0, 0);
    for round in 1..=rounds {
        let archive = bundle(scratch.path(), round);
        let server = Server::start_admin(&state, &[], &[]);
        // Xorshift: the same moments each time, as far as a machine allows.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let moment = Duration::from_millis(random % LONGEST_MS);
        thread::scope(|scope| {
            let deploying = scope.spawn(|| {
                server.try_admin("PUT", "bundles?activate=true", &archive).map(|reply| reply.status)
            });
            thread::sleep(moment);
            kill(&state);
            // What was answered is so; what was not may be.
            let answered = deploying.join().expect("no panic");
            assert!(matches!(answered, None | Some(201)), "{answered:?}");
        });
        drop(server);

        let verified = wisp().args(["store", "verify", "--json", "--state"]).arg(&state).output();
        let verified: Value =
            serde_json::from_str(&succeeded(&verified.expect("wisp runs"))).expect("JSON");
        assert_eq!(verified["problems"], serde_json::json!([]), "round {round}");

        let server = Server::start_admin(&state, &[], &[]);
        let reply = server.infer("add", &add_request());
        let now = match reply.status {
            404 => None,
            _ => {
                assert_eq!(reply.floats("sum"), [2.0, 4.0, 6.0, 8.0], "round {round}");
                Some(reply.json()["model_version"].as_str().expect("a text").to_owned())
            }
        };
        match now == Some(round.to_string()) {
            true => new += 1,
            false => {
                assert_eq!(now, served, "round {round}");
                old += 1;
            }
        }
        served = now;
        assert_eq!(fs::read_dir(state.join("staging")).expect("a folder").count(), 0);
        drop(server);
    }
    println!("{old} times the old version, {new} times the new");
    assert!(old > 0 && new > 0, "the moments were all too early or all too late: {old}, {new}");
}
