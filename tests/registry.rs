//! Bundles in registries: a real one (Debian's docker-registry), ones that are down, and ones
//! that lie.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::archives::{NOTES, Parts, blob, no_digests};
use crate::support::{
    Reply, Server, add_request, fixture, model, read, refused, scratch, succeeded, wisp,
};

/// User `wisp`, password `open sesame`; as `htpasswd -B -b -C 4` writes it.
const HTPASSWD: &str = "wisp:$2b$04$at/n.uBQ9/gDRWILk1uxBuOtlmWwH2mjU6rbBIQJllGkOmDi0DVfS\n";
/// The same as a client has it: `wisp:open sesame` in base64.
const AUTH: &str = "d2lzcDpvcGVuIHNlc2FtZQ==";

/// A running registry; stops when dropped.
struct Registry {
    child: Child,
    host: String,
    folder: TempDir,
}

impl Registry {
    fn start() -> Self {
        Self::start_with("")
    }

    /// Has these lines in its configuration; `FOLDER` stands for its folder.
    fn start_with(more: &str) -> Self {
        let installed = Command::new("docker-registry").arg("--version").output().is_ok();
        assert!(installed, "no docker-registry: run `make test`, which installs it");
        let folder = scratch();
        let place = folder.path().to_str().expect("UTF-8");
        // Free now; nobody else is given it so soon.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let host = free.expect("a free port").to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: \"{host}\"}}\nstorage:\n  filesystem: {{rootdirectory: {place}/data}}\n  delete: {{enabled: true}}\n{}",
            more.replace("FOLDER", place)
        );
        fs::write(folder.path().join("config.yml"), config).expect("a file");
        fs::write(folder.path().join("htpasswd"), HTPASSWD).expect("a file");
        // `timeout` ends a registry whose test was killed.
        let mut command = Command::new("timeout");
        command.args(["300", "docker-registry", "serve"]).arg(folder.path().join("config.yml"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut registry = Self { child: child.expect("it starts"), host, folder };
        for _ in 0..1000 {
            if TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            let ended = registry.child.try_wait().expect("a child");
            assert!(ended.is_none(), "docker-registry ended: {ended:?}");
            thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not listen");
    }

    fn reference(&self, rest: &str) -> String {
        format!("oci://{}/models/{rest}", self.host)
    }

    /// Pushes a bundle and returns its digest.
    fn push(&self, bundle: &Path, rest: &str) -> String {
        let bundle = bundle.to_str().expect("UTF-8");
        let pushed = succeeded(&run(&["push", bundle, &self.reference(rest)]));
        pushed.trim_end().split_once('@').expect("a pinned reference").1.to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// Runs `wisp ARGS` without credentials.
fn run(args: &[&str]) -> Output {
    run_with(args, Path::new("/nowhere"))
}

/// Runs `wisp ARGS` with the credentials in the folder `docker`.
fn run_with(args: &[&str], docker: &Path) -> Output {
    let mut command = wisp();
    command.args(args).env("DOCKER_CONFIG", docker).env("REGISTRY_AUTH_FILE", "/nowhere/auth.json");
    command.output().expect("wisp runs")
}

/// Has the server pull a bundle.
fn deploy(server: &Server, reference: &str, query: &str) -> Reply {
    let body = json!({"reference": reference}).to_string();
    let kind = [("content-type", "application/json")];
    server.admin("PUT", &format!("bundles?{query}"), &kind, body.as_bytes())
}

#[track_caller]
fn add_answers(server: &Server, model: &str) {
    assert_eq!(server.infer(model, &add_request()).floats("sum"), [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn packed_pushed_pulled_and_deployed_it_is_the_same() {
    let registry = Registry::start();
    let reference = registry.reference("digits:1");
    let scratch = scratch();
    let file = |name: &str| scratch.path().join(name).to_str().expect("UTF-8").to_owned();
    let (packed, pulled, pinned) = (file("digits.wisp"), file("1.wisp"), file("2.wisp"));
    let digits = model("digits");
    let made = run(&["pack", digits.to_str().expect("UTF-8"), "-o", &packed, "--json"]);
    let made: Value = serde_json::from_str(&succeeded(&made)).expect("JSON");
    let digest = made["digest"].as_str().expect("a digest");

    assert_eq!(registry.push(Path::new(&packed), "digits:1"), digest);
    // A second time, all blobs are there.
    assert_eq!(registry.push(Path::new(&packed), "digits:1"), digest);
    let said = succeeded(&run(&["pull", &reference, "-o", &pulled]));
    assert_eq!(said, format!("{pulled}  {digest}\n"));
    let by_digest = registry.reference(&format!("digits@{digest}"));
    succeeded(&run(&["pull", &by_digest, "-o", &pinned]));
    for copy in [&pulled, &pinned] {
        assert!(read(Path::new(copy)) == read(Path::new(&packed)), "{copy} differs");
    }

    let server = Server::start_admin(Path::new(&file("state")), &[], &[]);
    server.wisp_ok(&["deploy", &reference]);
    let seven = read(&fixture("photos/seven.png"));
    assert_eq!(server.infer_raw("digits", "image/png", &seven).strings("label")[0], "7");
    let listed: Value = serde_json::from_str(&server.wisp_ok(&["list", "--json"])).expect("JSON");
    let version = &listed[0]["versions"][0];
    assert_eq!((&version["digest"], &version["source"]), (&json!(digest), &json!(reference)));
}

#[test]
fn a_tag_that_moves_moves_nothing_that_is_deployed() {
    let registry = Registry::start();
    let scratch = scratch();
    let server = Server::start_admin(scratch.path(), &[], &[]);
    let latest = registry.reference("moving:latest");
    let first = registry.push(&fixture("models/add.onnx"), "moving:latest");
    assert_eq!(deploy(&server, &latest, "name=m").status, 201);
    let second = registry.push(&fixture("models/echo.onnx"), "moving:latest");
    add_answers(&server, "m");

    let conflict = deploy(&server, &latest, "name=m&version=1").error(409, "conflict");
    assert!(conflict.contains(&first) && conflict.contains(&second), "{conflict}");
    let deployed = deploy(&server, &latest, "name=m").json();
    assert_eq!([&deployed["version"], &deployed["digest"]], ["2", &second]);
    add_answers(&server, "m");
    let pinned = deploy(&server, &registry.reference(&format!("moving@{first}")), "name=m").json();
    assert_eq!([&pinned["version"], &pinned["digest"]], ["1", &first]);
}

#[test]
fn credentials_are_dockers() {
    let registry =
        Registry::start_with("auth:\n  htpasswd: {realm: models, path: FOLDER/htpasswd}\n");
    let (reference, docker) = (registry.reference("add:1"), registry.folder.path());
    let pulled = docker.join("pulled.wisp");
    let add = fixture("models/add.onnx");
    let push = ["push", add.to_str().expect("UTF-8"), &reference];
    let pull = ["pull", &reference, "-o", pulled.to_str().expect("UTF-8")];
    let login = |auth: &str| {
        let config = json!({"auths": {&registry.host: {"auth": auth}}});
        fs::write(docker.join("config.json"), config.to_string()).expect("a file");
    };
    for command in [&push[..], &pull[..]] {
        for (case, auth) in [("none", None), ("wrong", Some("d2lzcDpndWVzc2Vk"))] {
            if let Some(auth) = auth {
                login(auth);
            }
            let said = refused(&run_with(command, docker)).replace(&registry.host, "[host]");
            let reason = "[host] refuses these credentials, or wants some: `docker login [host]` keeps them where wisp looks";
            assert_eq!(said, format!("wisp: registry: {reason}"), "{case}: {command:?}");
        }
        fs::remove_file(docker.join("config.json")).expect("a file");
    }
    login(AUTH);
    succeeded(&run_with(&push, docker));
    succeeded(&run_with(&pull, docker));
}

/// Writes a new key and its public half.
pub fn keys(folder: &Path, name: &str) -> (String, String) {
    let file = |end: &str| folder.join(format!("{name}.{end}")).to_str().expect("UTF-8").to_owned();
    let (key, public) = (file("key"), file("pub"));
    let openssl = |args: &[&str]| {
        succeeded(&Command::new("openssl").args(args).output().expect("openssl runs"))
    };
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key]);
    openssl(&["pkey", "-in", &key, "-pubout", "-out", &public]);
    (key, public)
}

#[test]
fn signed_where_it_lies() {
    let registry = Registry::start();
    let scratch = scratch();
    let (alice, alice_public) = keys(scratch.path(), "alice");
    let (bob, bob_public) = keys(scratch.path(), "bob");
    registry.push(&fixture("models/add.onnx"), "add:1");
    registry.push(&fixture("models/echo.onnx"), "echo:1");
    let (signed, unsigned) = (registry.reference("add:1"), registry.reference("echo:1"));
    succeeded(&run(&["sign", &signed, "--key", &alice]));
    succeeded(&run(&["verify", &signed, "--key", &alice_public]));
    let said = refused(&run(&["verify", &signed, "--key", &bob_public]));
    assert!(said.contains("none of its 1 signatures is by these keys"), "{said}");

    let state = scratch.path().join("state");
    let server = Server::start_admin(&state, &[], &["--trusted-keys", &alice_public]);
    let deployed = deploy(&server, &signed, "").json();
    assert_eq!(deployed["signed_by"].as_str().map(str::len), Some(12), "{deployed}");
    add_answers(&server, "add");
    let said = deploy(&server, &unsigned, "").error(422, "bundle-refused");
    insta::assert_snapshot!(said, @"the bundle is refused: it is not signed, and this server takes only what a trusted key has signed");
    succeeded(&run(&["sign", &unsigned, "--key", &bob]));
    let said = deploy(&server, &unsigned, "").error(422, "bundle-refused");
    insta::assert_snapshot!(no_digests(&said), @"the bundle is refused: none of its 1 signatures is by a key that this server trusts and over [digest]");

    // A second signature joins the first.
    succeeded(&run(&["sign", &signed, "--key", &bob]));
    succeeded(&run(&["verify", &signed, "--key", &bob_public]));
    succeeded(&run(&["verify", &signed, "--key", &alice_public]));
}

#[test]
fn a_registry_that_is_not_there() {
    let scratch = scratch();
    let server = Server::start_admin(scratch.path(), &[fixture("models/add.onnx")], &[]);
    let fails = |host: &str| {
        let said = deploy(&server, &format!("oci://{host}/a:1"), "").error(502, "registry");
        add_answers(&server, "add");
        assert_eq!(fs::read_dir(scratch.path().join("staging")).expect("a folder").count(), 0);
        said.replace(host, "[host]")
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let host = listener.local_addr().expect("its address").to_string();
    drop(listener);
    insta::assert_snapshot!(fails(&host), @"registry: [host]: error sending request for url (http://[host]/v2/): client error (Connect): tcp connect error: Connection refused (os error 111)");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let host = listener.local_addr().expect("its address").to_string();
    thread::spawn(move || listener.incoming().for_each(drop));
    let said = fails(&host);
    assert!(said.starts_with("registry: [host]: error sending request for url "), "{said}");

    let add = fixture("models/add.onnx");
    let push = ["push", add.to_str().expect("UTF-8"), "oci://registry.invalid/a:1"];
    let said = refused(&run(&push));
    assert!(said.starts_with("wisp: registry: registry.invalid: "), "{said}");
    assert!(said.contains("(https://registry.invalid/"), "{said}");
    let said = refused(&run(&[&push[..], &["--plain-http"]].concat()));
    assert!(said.contains("(http://registry.invalid/"), "{said}");
}

/// What a registry sends instead of the notes.
#[derive(Clone, Copy)]
enum Lie {
    Longer,
    Shorter,
    Other,
    /// In the middle, the first time; then it takes the range that is asked for.
    BreaksOff,
    /// No lie: all of it, piece by piece.
    Slow,
}

impl Lie {
    /// The status, the announced length, and what is sent; `from` is where the range begins.
    fn answer(self, from: Option<usize>) -> (u16, usize, Vec<u8>) {
        let (status, rest) = match from {
            Some(from) => (206, &NOTES[from..]),
            None => (200, NOTES),
        };
        match (self, from) {
            (Self::Longer, _) => (status, rest.len() + 4, [rest, b"more"].concat()),
            (Self::Shorter, None) => (200, NOTES.len() - 1, NOTES[1..].to_vec()),
            (Self::Shorter, Some(_)) => (206, 0, Vec::new()),
            (Self::Other, _) => (status, rest.len(), vec![b'x'; rest.len()]),
            (Self::BreaksOff, None) => (200, NOTES.len(), NOTES[..NOTES.len() / 2].to_vec()),
            (Self::Slow, _) => (status, rest.len(), rest.to_vec()),
            (Self::BreaksOff, Some(_)) => (206, rest.len(), rest.to_vec()),
        }
    }
}

/// A registry with one bundle, of which it sends the notes wrongly.
struct Liar {
    reference: String,
    /// The head of each request, in lower case.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Liar {
    fn start(bundle: &Parts, lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let reference = format!("oci://{}/echo:1", listener.local_addr().expect("its address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let entries = bundle.entries();
        // The first is the index, the next the manifest.
        let manifest = entries[1].1.clone();
        let files: BTreeMap<_, _> = entries.into_iter().collect();
        let heads = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let head = head(&stream);
                let path = head.split(' ').nth(1).unwrap_or_default();
                let range = head.split_once("\r\nrange: bytes=").map(|(_, range)| range);
                let from = range.and_then(|range| range.split('-').next()?.parse().ok());
                let file = path.rsplit('/').next().unwrap_or_default().replace(':', "/");
                let file = format!("blobs/{file}");
                let whole = |content: &[u8]| (200, content.len(), content.to_vec());
                let (status, length, body) = match path {
                    "/v2/" => whole(b"{}"),
                    "/v2/echo/manifests/1" => whole(&manifest),
                    _ if file == blob(NOTES) => lie.answer(from),
                    _ => files.get(&file).map_or((404, 0, Vec::new()), |content| whole(content)),
                };
                heads.lock().expect("no holder panics").push(head);
                let answer = format!(
                    "HTTP/1.1 {status} Said\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
                );
                let answer = [answer.as_bytes(), &body].concat();
                let is_slow = matches!(lie, Lie::Slow) && file == blob(NOTES);
                for piece in answer.chunks(if is_slow { 20_000 } else { answer.len() }) {
                    // A client that has read enough may be gone.
                    let _ = (&stream).write_all(piece);
                    thread::sleep(Duration::from_millis(if is_slow { 50 } else { 0 }));
                }
            }
        });
        Self { reference, asked }
    }
}

/// A request's head, in lower case.
fn head(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    lines.join("\r\n").to_lowercase()
}

#[test]
fn a_registry_that_lies_is_found_out() {
    let scratch = scratch();
    let state = scratch.path().join("state");
    let server = Server::start_admin(&state, &[], &[]);
    server.wisp_ok(&["deploy", fixture("models/add.onnx").to_str().expect("UTF-8")]);
    let bundle = Parts::good(scratch.path());
    let fails = |lie: Lie, status: u16, kind: &str| {
        let liar = Liar::start(&bundle, lie);
        let reason = deploy(&server, &liar.reference, "").error(status, kind);
        assert_eq!(fs::read_dir(state.join("staging")).expect("a folder").count(), 0);
        server.get("/v2/models/echo").error(404, "unknown-model");
        add_answers(&server, "add");
        no_digests(&reason)
    };
    insta::assert_snapshot!(fails(Lie::Longer, 422, "bundle-refused"), @"the bundle is refused: blob [digest] has more than the 100000 bytes expected");
    insta::assert_snapshot!(fails(Lie::Shorter, 502, "registry"), @"registry: blob [digest]: expected 100000 bytes, got 99999");
    insta::assert_snapshot!(fails(Lie::Other, 422, "bundle-refused"), @"the bundle is refused: blob [digest]: the registry sent content of [digest]");

    let liar = Liar::start(&bundle, Lie::BreaksOff);
    assert_eq!(deploy(&server, &liar.reference, "").status, 201);
    let asked = liar.asked.lock().expect("no holder panics");
    let resumed = |head: &&String| head.contains(&format!("range: bytes={}-", NOTES.len() / 2));
    assert_eq!(asked.iter().filter(resumed).count(), 1, "{asked:?}");
    assert_eq!(server.get("/v2/models/echo/ready").json()["ready"], true);

    // Slow is no lie.
    server.wisp_ok(&["undeploy", "echo"]);
    assert_eq!(deploy(&server, &Liar::start(&bundle, Lie::Slow).reference, "").status, 201);
}
