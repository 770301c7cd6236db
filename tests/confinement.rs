//! What is taken from a server, and from the process that examines bundles, before either sees
//! anything of others'.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Server, add_request, child_of, fixture, hostile_bundle, refused, scratch, succeeded, wisp,
};

/// What the kernel says of each thread of a process.
fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let tasks = tasks.map(|task| task.expect("a thread").path().join("status"));
    // One may end meanwhile.
    tasks.filter_map(|status| fs::read_to_string(status).ok()).collect()
}

#[track_caller]
fn assert_held_in(pid: u32) {
    let threads = threads(pid);
    assert!(!threads.is_empty());
    for status in threads {
        assert!(status.contains("\nNoNewPrivs:\t1\n"), "{status}");
        assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    }
}

#[test]
fn a_server_reads_what_was_named_and_nothing_else() {
    let folder = scratch();
    let (named, kept) = (folder.path().join("add"), folder.path().join("kept"));
    let load = "/v2/repository/models/add/load";
    for confine in ["true", "false"] {
        write_add(&named);
        let flags = ["--client-control", "true", "--confine", confine];
        let server = Server::start_with(std::slice::from_ref(&named), &flags);
        assert_eq!(server.infer("add", &add_request()).floats("sum"), [2.0, 4.0, 6.0, 8.0]);
        // Read once more, it is another folder, which nobody has named.
        fs::rename(&named, &kept).expect("moved away");
        write_add(&named);
        assert_eq!(server.post("/v2/repository/models/add/unload", &[], b"").status, 200);
        let reply = server.post(load, &[], b"");
        match confine {
            "true" => {
                assert_held_in(server.pid());
                let said = String::from_utf8_lossy(&reply.body).into_owned();
                assert!(reply.status != 200 && said.contains("Permission denied"), "{reply:?}");
                // The one that was named may be read wherever it is.
                fs::remove_dir_all(&named).expect("removed");
                fs::rename(&kept, &named).expect("moved back");
                assert_eq!(server.post(load, &[], b"").status, 200);
                assert_eq!(server.infer("add", &add_request()).status, 200);
            }
            _ => {
                assert_eq!(reply.status, 200, "{reply:?}");
                assert_eq!(server.status_line("Seccomp"), "0");
            }
        }
        let (ended_well, log) = server.stop();
        let expected = match confine {
            "true" => "confinement: no-new-privs, landlock (ABI ",
            _ => "confinement: none, as the setting confine says",
        };
        assert!(ended_well && log.contains(expected) && !log.contains("; without"), "{log}");
    }
}

fn write_add(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    fs::copy(fixture("models/add.onnx"), folder.join("add.onnx")).expect("a fixture");
    fs::write(folder.join("wisp.toml"), "[graphs]\nmodel = \"add.onnx\"\n").expect("a manifest");
}

/// The folder for what is unpacked lies where others' do, and goes with the server.
#[test]
fn nothing_is_left_behind() {
    let (folder, temporary) = (scratch(), scratch());
    let file = folder.path().join("add.wisp");
    let packed = wisp().arg("pack").arg(fixture("models/add.onnx")).arg("-o").arg(&file).output();
    succeeded(&packed.expect("wisp runs"));
    let place = temporary.path().to_str().expect("UTF-8");
    let server = Server::start_in(&[file], &[], &[("TMPDIR", place)]);
    assert_eq!(server.infer("add", &add_request()).status, 200);
    assert_eq!(fs::read_dir(temporary.path()).expect("a folder").count(), 1);
    assert!(server.stop().0);
    assert_eq!(fs::read_dir(temporary.path()).expect("a folder").count(), 0);
}

#[test]
fn an_examination_is_held_in_further() {
    let folder = scratch();
    let state = folder.path().join("state");
    let server = Server::start_admin(&state, &[], &["--examine-seconds", "10"]);
    let looping = hostile_bundle(folder.path(), "loop", "[settings]\nprepare = \"loop\"\n");
    let looping = looping.to_str().expect("UTF-8");
    thread::scope(|scope| {
        let deploying = scope.spawn(|| refused(&server.wisp(&["deploy", looping])));
        // Once it has left its own start behind.
        let child = loop {
            let child = child_of(server.pid());
            if let Some(child) = child.filter(|&child| filters(child) == 4) {
                break child;
            }
            assert!(!deploying.is_finished(), "{}", server.log());
            thread::sleep(Duration::from_millis(5));
        };
        assert_held_in(child);
        let said = deploying.join().expect("it ends");
        assert!(said.contains("the examination took longer than 10 s"), "{said}");
    });

    let add = fixture("models/add.onnx");
    let deployed = server.wisp_ok(&["deploy", add.to_str().expect("UTF-8"), "--json"]);
    let deployed: Value = serde_json::from_str(&deployed).expect("JSON");
    let confined = deployed["report"]["confined_by"].to_string();
    for what in ["no-new-privs", "landlock (ABI ", "seccomp (no sockets)"] {
        assert!(confined.contains(what), "{deployed}");
    }
    assert!(server.stop().0);
}

/// seccomp's filters of a process: its parent's, and its own.
fn filters(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:\t"));
    filters.and_then(|filters| filters.parse().ok()).unwrap_or(0)
}

/// A link is a name for what it leads to.
#[test]
fn links_of_a_named_folder_are_followed() {
    let folder = scratch();
    let (named, other) = (folder.path().join("named"), folder.path().join("other"));
    for folder in [&named, &other] {
        fs::create_dir(folder).expect("a folder");
    }
    let file = other.join("add.onnx");
    fs::copy(fixture("models/add.onnx"), &file).expect("a fixture");
    std::os::unix::fs::symlink(&file, named.join("add.onnx")).expect("a link");
    let server = Server::start_with(std::slice::from_ref(&named), &[]);
    assert_eq!(server.infer("add", &add_request()).status, 200);
    assert_held_in(server.pid());
}

/// Programs that keep credentials need what they need.
#[test]
fn credential_helpers_are_let_run() {
    let folder = scratch();
    let helpers = r#"{"credHelpers": {"registry.invalid": "none"}}"#;
    fs::write(folder.path().join("config.json"), helpers).expect("a file");
    let docker = folder.path().to_str().expect("UTF-8");
    let state = folder.path().join("state");
    let flags = ["--state", state.to_str().expect("UTF-8"), "--admin-listen", "none"];
    let server =
        Server::start_in(&[fixture("models/add.onnx")], &flags, &[("DOCKER_CONFIG", docker)]);
    assert_held_in(server.pid());
    let (ended_well, log) = server.stop();
    assert!(ended_well, "{log}");
    let line = log.lines().find(|line| line.contains("confinement: ")).expect("a line");
    assert!(line.contains("confinement: no-new-privs, seccomp; without landlock: "), "{line}");
    assert!(line.contains("config.json names programs that keep credentials"), "{line}");
}
