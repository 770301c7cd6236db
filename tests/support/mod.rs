//! The server under test, and the little HTTP that tests speak to it.

pub mod forms;
pub mod grpc;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the root").to_owned()
}

pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

pub fn guest(name: &str) -> PathBuf {
    root().join("target/guests").join(format!("{name}.wasm"))
}

/// What `make models` put there.
pub fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// A photo out of a package, fetched by `make models`.
pub fn photo(name: &str) -> Vec<u8> {
    read(&root().join("target/photos").join(name))
}

pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| {
        panic!("{}: {error}; run `make test`, which fetches it", path.display())
    })
}

/// The `wisp` binary; compiled guests are kept across tests, as a user's are.
pub fn wisp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wisp"));
    command.env("WISP_CACHE", root().join("target/tmp/test-cache"));
    command
}

/// The stdout of a command that must have gone well.
#[track_caller]
pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The stderr of a command that must have failed.
#[track_caller]
pub fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

/// A folder for one test.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Writes a bundle of the hostile guest.
pub fn hostile_bundle(folder: &Path, name: &str, more: &str) -> PathBuf {
    let bundle = folder.join(name);
    fs::create_dir_all(&bundle).expect("a folder");
    fs::copy(guest("hostile"), bundle.join("guest.wasm")).expect("the hostile guest is built");
    fs::write(bundle.join("wisp.toml"), format!("component = \"guest.wasm\"\n{more}"))
        .expect("a manifest");
    bundle
}

/// Writes the bundle of the reference guest whose manifest is a fixture.
pub fn reference_bundle(folder: &Path, name: &str) -> PathBuf {
    let manifest = fixture("models").join(name).join("wisp.toml");
    write_reference(folder, name, &fs::read_to_string(manifest).expect("a manifest"))
}

/// Writes a bundle of the reference guest that gives these tensors back: `x y FP32 -1; …`.
pub fn identity_bundle(folder: &Path, name: &str, tensors: &str) -> PathBuf {
    let settings = format!("kind = \"identity\"\ntensors = \"{tensors}\"\n");
    write_reference(folder, name, &format!("component = \"guest.wasm\"\n[settings]\n{settings}"))
}

fn write_reference(folder: &Path, name: &str, manifest: &str) -> PathBuf {
    let bundle = folder.join(name);
    fs::create_dir_all(&bundle).expect("a folder");
    fs::copy(guest("reference"), bundle.join("guest.wasm")).expect("the reference guest is built");
    fs::write(bundle.join("wisp.toml"), manifest).expect("a manifest");
    bundle
}

/// The process that `parent` has started, if there is one.
pub fn child_of(parent: u32) -> Option<u32> {
    let parent = format!("PPid:\t{parent}");
    let entries = fs::read_dir("/proc").expect("processes");
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| status.lines().any(|line| line == parent))
    })
}

/// A running server; stops when dropped.
pub struct Server {
    child: Child,
    pub url: String,
    /// Of the admin API, where there is one.
    pub admin_url: String,
    lines: Mutex<Receiver<String>>,
    stderr: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    agent: Agent,
}

impl Server {
    /// Serves these paths with default settings.
    pub fn start(paths: &[PathBuf]) -> Self {
        Self::start_with(paths, &[])
    }

    pub fn start_with(paths: &[PathBuf], flags: &[&str]) -> Self {
        Self::start_in(paths, flags, &[])
    }

    /// With these in its environment.
    pub fn start_in(paths: &[PathBuf], flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut server = Self::spawn(paths, flags, environment);
        server.url = server.url_in("listening on ");
        server
    }

    /// Serves what is deployed to `state`, and these paths.
    pub fn start_admin(state: &Path, paths: &[PathBuf], flags: &[&str]) -> Self {
        let state = state.to_str().expect("UTF-8");
        let mut all = vec!["--state", state, "--admin-listen", "127.0.0.1:0"];
        all.extend(flags);
        let mut server = Self::spawn(paths, &all, &[]);
        server.url = server.url_in("listening on ");
        server.admin_url = server.url_in("admin API on ");
        server
    }

    fn spawn(paths: &[PathBuf], flags: &[&str], environment: &[(&str, &str)]) -> Self {
        // `timeout` ends a server whose test was killed.
        let wisp = wisp();
        let mut command = Command::new("timeout");
        command.arg("300").arg(wisp.get_program());
        command.envs(wisp.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.envs(environment.iter().copied());
        command.arg("serve").args(paths).args(["--listen", "127.0.0.1:0"]).args(flags);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("wisp starts");

        let stderr = Arc::new(Mutex::new(String::new()));
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let kept = stderr.clone();
        let log_reader = thread::spawn(move || {
            let mut line = String::new();
            while log.read_line(&mut line).is_ok_and(|read| read > 0) {
                kept.lock().expect("no holder panics").push_str(&line);
                line.clear();
            }
        });
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });

        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        let lines = Mutex::new(lines);
        Self {
            child,
            url: String::new(),
            admin_url: String::new(),
            lines,
            stderr,
            log_reader: Some(log_reader),
            agent: agent.into(),
        }
    }

    fn url_in(&self, before: &str) -> String {
        let line = self.next_line();
        let url = line.split_once(before).map(|(_, url)| url.to_owned());
        url.unwrap_or_else(|| panic!("{line}\n{}", self.log()))
    }

    /// The next line on stdout, waited for.
    pub fn next_line(&self) -> String {
        let lines = self.lines.lock().expect("no holder panics");
        lines
            .recv_timeout(Duration::from_secs(60))
            .unwrap_or_else(|_| panic!("no line came; the log:\n{}", self.log()))
    }

    pub fn log(&self) -> String {
        self.stderr.lock().expect("no holder panics").clone()
    }

    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[])
    }

    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Reply::from(request.call())
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let request = self.agent.post(format!("{}{path}", self.url));
        // ureq would name a type of its own for a slice of bytes; an empty one is as good as none.
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Reply::from(request.send(body))
    }

    /// Asks the admin API; `path` is below `/admin/v1/`.
    pub fn admin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let url = format!("{}/admin/v1/{path}", self.admin_url);
        let request = ureq::http::Request::builder().method(method).uri(url);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Reply::from(self.agent.run(request.body(body).expect("a request")))
    }

    /// As [`Server::admin`], of a server that may be killed meanwhile: then there is no answer.
    pub fn try_admin(&self, method: &str, path: &str, body: &[u8]) -> Option<Reply> {
        let url = format!("{}/admin/v1/{path}", self.admin_url);
        let request = ureq::http::Request::builder().method(method).uri(url).body(body);
        self.agent.run(request.expect("a request")).ok().map(|response| Reply::from(Ok(response)))
    }

    /// Runs `wisp ARGS` against this server's admin API.
    pub fn wisp(&self, args: &[&str]) -> Output {
        let output = wisp().args(args).args(["--admin", &self.admin_url]).output();
        output.expect("wisp runs")
    }

    /// Runs `wisp ARGS` against this server's admin API, which must go well; its stdout.
    #[track_caller]
    pub fn wisp_ok(&self, args: &[&str]) -> String {
        succeeded(&self.wisp(args))
    }

    /// Posts JSON to a model's `infer`.
    pub fn infer(&self, model: &str, body: &Value) -> Reply {
        self.post(
            &format!("/v2/models/{model}/infer"),
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    /// Posts a raw body to a model's `infer`.
    pub fn infer_raw(&self, model: &str, media_type: &str, body: &[u8]) -> Reply {
        self.post(&format!("/v2/models/{model}/infer"), &[("content-type", media_type)], body)
    }

    /// The process that serves; `child` is `timeout`, which started it.
    pub fn pid(&self) -> u32 {
        child_of(self.child.id()).expect("a process that serves")
    }

    /// A line of the process's status, as the kernel gives it.
    pub fn status_line(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a line of that name").trim().to_owned()
    }

    /// The most memory it has had resident so far.
    pub fn peak_mib(&self) -> u64 {
        let peak = self.status_line("VmHWM");
        let kib = peak.trim_end_matches(" kB").parse::<u64>().expect("a number");
        kib >> 10
    }

    /// Asks the server to stop, waits for it, and returns whether it ended well and its log.
    pub fn stop(mut self) -> (bool, String) {
        self.terminate();
        let status = self.child.wait().expect("wisp ends");
        // What it wrote last may still be on its way.
        self.log_reader.take().map(JoinHandle::join);
        // `timeout` passes its child's status on.
        (status.success(), self.log())
    }

    /// A file of the server's process, below /proc.
    pub fn process(&self, file: &str) -> String {
        // The child is `timeout`, whose only child is the server.
        let watcher = self.child.id();
        let children = fs::read_to_string(format!("/proc/{watcher}/task/{watcher}/children"));
        let id = children.expect("a process").trim().to_owned();
        fs::read_to_string(format!("/proc/{id}/{file}")).expect("the server runs")
    }

    /// CPU time of its process, µs, by the system's count: in ticks of 10 ms.
    pub fn cpu_us(&self) -> u64 {
        let stat = self.process("stat");
        let fields = stat.rsplit(')').next().expect("a name").split_whitespace();
        let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks"));
        ticks.sum::<u64>() * 10_000
    }

    pub fn terminate(&self) {
        let killed = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        assert!(killed.is_ok_and(|status| status.success()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    fn from(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut response = result.expect("the server answers");
        let mut body = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut body).expect("the answer is whole");
        Self { status: response.status().as_u16(), headers: response.headers().clone(), body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The outputs of a successful answer.
    pub fn outputs(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()["outputs"].as_array().expect("a list").clone()
    }

    /// The data of the output of that name, as JSON.
    pub fn output(&self, name: &str) -> Value {
        let outputs = self.outputs();
        let output = outputs.iter().find(|output| output["name"] == name);
        output.unwrap_or_else(|| panic!("no output {name} in {outputs:?}"))["data"].clone()
    }

    pub fn floats(&self, name: &str) -> Vec<f64> {
        self.output(name)
            .as_array()
            .expect("a list")
            .iter()
            .map(|value| value.as_f64().expect("a number"))
            .collect()
    }

    pub fn strings(&self, name: &str) -> Vec<String> {
        self.output(name)
            .as_array()
            .expect("a list")
            .iter()
            .map(|value| value.as_str().expect("a string").to_owned())
            .collect()
    }

    /// Checks an error's status, kind and body, and returns its text.
    pub fn error(&self, status: u16, kind: &str) -> String {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!((self.status, self.header("wisp-error")), (status, Some(kind)), "{body}");
        let error = self.json();
        assert_eq!(error.as_object().map(|object| object.len()), Some(1), "{error}");
        error["error"].as_str().expect("a text").to_owned()
    }
}

/// A good request for the model `add`: twice 1, 2, 3, 4.
pub fn add_request() -> Value {
    let input =
        |name| json!({"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]});
    json!({"inputs": [input("a"), input("b")]})
}
