//! Archives that are damaged, lie or never end: each is refused with its reason, leaves nothing
//! behind, and what is served goes on. And state folders that a server cannot take.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType, Header};
use tempfile::TempDir;

use crate::support::{Server, add_request, fixture, refused, scratch, succeeded, wisp};

const TITLE: &str = "org.opencontainers.image.title";

/// The asset of [`Parts::good`].
pub const NOTES: &[u8] = &[b'n'; 100_000];

/// A bundle taken apart, to be put together wrongly.
pub struct Parts {
    pub manifest: Value,
    config: Value,
    /// The other entries of its archive by name: the files, and what says that it is a layout.
    files: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    /// The model `echo`; its layers are a guest, a graph, and the notes.
    pub fn good(folder: &Path) -> Self {
        Self::with_notes(folder, NOTES)
    }

    fn with_notes(folder: &Path, notes: &[u8]) -> Self {
        let source = folder.join("echo");
        fs::create_dir_all(&source).expect("a folder");
        fs::copy(fixture("models/echo.onnx"), source.join("echo.onnx")).expect("a fixture");
        fs::write(source.join("notes.txt"), notes).expect("a file");
        let manifest =
            "name = \"echo\"\nassets = [\"notes.txt\"]\n[graphs]\nmodel = \"echo.onnx\"\n";
        fs::write(source.join("wisp.toml"), manifest).expect("a file");
        Self::read(&fs::read(pack(&source, folder, "echo.wisp")).expect("packed"))
    }

    pub fn read(archive: &[u8]) -> Self {
        let mut archive = Archive::new(archive);
        let entries = archive.entries().expect("a tar").map(|entry| {
            let mut entry = entry.expect("an entry");
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("its content");
            (name, content)
        });
        let mut files: BTreeMap<String, Vec<u8>> = entries.collect();
        let mut take = |name: &str| -> Value {
            let content = files.remove(name).expect("an entry of that name");
            serde_json::from_slice(&content).expect("JSON")
        };
        let name = |digest: &Value| digest.as_str().expect("a text").replace(':', "/");
        let index = take("index.json");
        let mut manifest = take(&format!("blobs/{}", name(&index["manifests"][0]["digest"])));
        let config = take(&format!("blobs/{}", name(&manifest["config"]["digest"])));
        manifest["config"]["size"] = json!(config.to_string().len());
        Self { manifest, config, files }
    }

    /// All entries, under digests that fit. Sizes stay as the manifest has them.
    pub fn entries(&self) -> Vec<(String, Vec<u8>)> {
        let (mut manifest, config) = (self.manifest.clone(), self.config.to_string());
        manifest["config"]["digest"] = json!(digest(config.as_bytes()));
        let manifest = manifest.to_string();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(manifest.as_bytes()), "size": manifest.len(),
        }]});
        let mut entries = vec![("index.json".to_owned(), index.to_string().into_bytes())];
        for document in [manifest, config] {
            entries.push((blob(document.as_bytes()), document.into_bytes()));
        }
        entries.extend(self.files.clone());
        entries
    }

    pub fn archive(&self) -> Vec<u8> {
        archive(&self.entries())
    }

    /// Has these bytes as its guest, whatever they are.
    pub fn replace_guest(&mut self, guest: &[u8]) {
        let layers = self.manifest["layers"].as_array_mut().expect("a list");
        let layer = layers.iter_mut().find(|layer| layer["mediaType"] == "application/wasm");
        let layer = layer.expect("a guest");
        layer["digest"] = json!(digest(guest));
        layer["size"] = json!(guest.len());
        self.files.insert(blob(guest), guest.to_vec());
    }
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The name of the entry with this content.
pub fn blob(content: &[u8]) -> String {
    format!("blobs/{}", digest(content).replace(':', "/"))
}

/// The text without digests: they change with each build of the guests.
pub fn no_digests(text: &str) -> String {
    let is_other = |character: char| !character.is_ascii_hexdigit();
    let parts = text.split_inclusive(is_other);
    let parts = parts.map(|part| match part.trim_end_matches(is_other).len() {
        64 => format!("[digest]{}", &part[64..]),
        _ => part.to_owned(),
    });
    parts.collect::<String>().replace("sha256:[digest]", "[digest]")
}

fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive: Vec<u8> = Vec::new();
    for (name, content) in entries {
        archive.extend(entry(EntryType::Regular, name, content.len() as u64));
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0u8; 1024]);
    archive
}

/// A header by hand: the crate's own writer is too careful for what is wanted here.
fn entry(kind: EntryType, name: &str, size: u64) -> [u8; 512] {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    *header.as_bytes()
}

fn pack(source: &Path, folder: &Path, file: &str) -> PathBuf {
    let out = folder.join(file);
    succeeded(&wisp().arg("pack").arg(source).arg("-o").arg(&out).output().expect("wisp runs"));
    out
}

fn verify(state: &Path) -> Output {
    wisp().args(["store", "verify", "--state"]).arg(state).output().expect("wisp runs")
}

/// A server that serves one good model, and to which bad ones are sent.
struct Target {
    server: Server,
    state: PathBuf,
    scratch: TempDir,
}

impl Target {
    fn start(flags: &[&str]) -> Self {
        let scratch = scratch();
        let state = scratch.path().join("state");
        let server = Server::start_admin(&state, &[], flags);
        server.wisp_ok(&["deploy", fixture("models/add.onnx").to_str().expect("UTF-8")]);
        Self { server, state, scratch }
    }

    fn good(&self) -> Parts {
        Parts::good(self.scratch.path())
    }

    /// Sends an archive, which must be refused without a trace, and returns the reason.
    #[track_caller]
    fn refuses(&self, archive: &[u8]) -> String {
        let kind = [("content-type", "application/vnd.oci.image.layout.v1.tar")];
        let reply = self.server.admin("PUT", "bundles", &kind, archive);
        let reason = no_digests(&reply.error(422, "bundle-refused"));
        self.is_unharmed();
        reason
    }

    /// Announces the whole archive, sends the beginning, hangs up, and returns the answer.
    fn cut_in_mid_stream(&self, archive: &[u8], sent: usize) -> String {
        let address = self.server.admin_url.trim_start_matches("http://");
        let length = archive.len();
        let head = format!(
            "PUT /admin/v1/bundles HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(&[head.as_bytes(), &archive[..sent]].concat()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("shut down");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        self.is_unharmed();
        answer
    }

    #[track_caller]
    fn is_unharmed(&self) {
        assert_eq!(fs::read_dir(self.state.join("staging")).expect("a folder").count(), 0);
        assert_eq!(self.server.infer("add", &add_request()).floats("sum"), [2.0, 4.0, 6.0, 8.0]);
    }

    /// Stops the server; its store must hold the good model, whole, and nothing else.
    fn stop(self) {
        assert!(self.server.stop().0);
        let found = succeeded(&verify(&self.state));
        assert!(found.starts_with("1 models, 1 versions, 4 blobs of "), "{found}");
        assert!(found.ends_with(", 0 unused\n"), "{found}");
    }
}

#[test]
fn parts_that_do_not_fit_together() {
    let target = Target::start(&[]);
    let mut entries = target.good().entries();
    let notes = entries.iter_mut().find(|(name, _)| *name == blob(NOTES)).expect("the notes");
    notes.1[7] = b'N';
    insta::assert_snapshot!(target.refuses(&archive(&entries)), @"the bundle is refused: blobs/sha256/[digest]: expected [digest], its content is [digest]");

    let mut parts = target.good();
    parts.manifest["layers"][2]["size"] = json!(100_001);
    insta::assert_snapshot!(target.refuses(&parts.archive()), @"the bundle is refused: the layer `notes.txt`: expected 100001 bytes, got 100000");

    let mut parts = target.good();
    parts.manifest["config"]["size"] = json!(1);
    let reason = target.refuses(&parts.archive());
    assert!(reason.contains("config: expected 1 bytes"), "{reason}");

    let mut parts = target.good();
    parts.files.remove(&blob(NOTES));
    insta::assert_snapshot!(target.refuses(&parts.archive()), @"the bundle is refused: the layer `notes.txt` ([digest]) is missing");

    let mut parts = target.good();
    let mut second = parts.manifest["layers"][0].clone();
    second["annotations"][TITLE] = json!("second.wasm");
    parts.manifest["layers"].as_array_mut().expect("a list").push(second);
    insta::assert_snapshot!(target.refuses(&parts.archive()), @r#"the bundle is refused: expected one layer of type application/wasm, got 2: ["guest.wasm", "second.wasm"]"#);

    let mut parts = target.good();
    parts.config["bundle"]["format"] = json!(2);
    parts.config["bundle"]["future"] = json!("?");
    parts.manifest["config"]["size"] = json!(parts.config.to_string().len());
    insta::assert_snapshot!(target.refuses(&parts.archive()), @"the bundle is refused: its manifest has format 2 of a newer wisp, this one reads format 1");
    target.stop();
}

#[test]
fn names_that_lead_outside() {
    let target = Target::start(&[]);
    let titled = |title: &str| {
        let mut parts = target.good();
        parts.manifest["layers"][2]["annotations"][TITLE] = json!(title);
        target.refuses(&parts.archive())
    };
    insta::assert_snapshot!(titled("../notes.txt"), @"the bundle is refused: layer 2: title `../notes.txt`: expected a path inside the bundle's folder");
    insta::assert_snapshot!(titled("/etc/notes.txt"), @"the bundle is refused: layer 2: title `/etc/notes.txt`: expected a path inside the bundle's folder");

    let mut entries = target.good().entries();
    entries.insert(0, ("../../x".to_owned(), b"out".to_vec()));
    insta::assert_snapshot!(target.refuses(&archive(&entries)), @"the bundle is refused: unexpected entry `../../x`: expected oci-layout, index.json and blobs/sha256/…");
    entries[0].0 = "blobs/sha256/../../x".to_owned();
    insta::assert_snapshot!(target.refuses(&archive(&entries)), @"the bundle is refused: `blobs/sha256/../../x`: expected a digest `sha256:` and 64 hexadecimal digits, got `sha256:../../x`");

    let link = entry(EntryType::Symlink, &blob(NOTES), 0);
    insta::assert_snapshot!(target.refuses(&link), @"the bundle is refused: the archive's entry `blobs/sha256/[digest]` is of type Symlink, expected regular files");
    target.stop();
}

#[test]
fn more_than_is_taken() {
    let target = Target::start(&["--bundle-limit-mib", "1"]);
    let large = Parts::with_notes(target.scratch.path(), &vec![0; 2 << 20]);
    insta::assert_snapshot!(target.refuses(&large.archive()), @"the bundle is refused: layer 2, `notes.txt`: with its 2097152 bytes the bundle is over the 1048576 bytes that are taken here");

    let bomb = entry(EntryType::Regular, &blob(NOTES), 1 << 40);
    insta::assert_snapshot!(target.refuses(&bomb), @"the bundle is refused: `blobs/sha256/[digest]`: with its 1099511627776 bytes the bundle is over the 1048576 bytes that are taken here");
    let bomb = entry(EntryType::Regular, "index.json", 8 << 20);
    insta::assert_snapshot!(target.refuses(&bomb), @"the bundle is refused: index.json has 8388608 bytes, expected at most 4194304");
    let sparse = entry(EntryType::GNUSparse, &blob(NOTES), 0);
    insta::assert_snapshot!(target.refuses(&sparse), @"the bundle is refused: the archive's entry `blobs/sha256/[digest]` is of type GNUSparse, expected regular files");
    let many = archive(&vec![("index.json".to_owned(), b"{}".to_vec()); 5001]);
    insta::assert_snapshot!(target.refuses(&many), @"the bundle is refused: the archive has more than 5000 entries");
    let folders = entry(EntryType::Directory, "blobs/", 0).repeat(5001);
    insta::assert_snapshot!(target.refuses(&folders), @"the bundle is refused: the archive has more than 5000 entries");
    target.stop();
}

#[test]
fn archives_that_break_off_or_are_none() {
    let target = Target::start(&[]);
    let whole = target.good().archive();
    let half = target.refuses(&whole[..whole.len() / 2]);
    let (half, _sizes) = half.split_once(": expected").expect("how much was expected");
    insta::assert_snapshot!(half, @"the bundle is refused: the archive ends in the middle of `blobs/sha256/[digest]`");
    insta::assert_snapshot!(target.refuses(&whole[..100]), @"the bundle is refused: the archive is damaged or broke off: failed to read entire block");
    for sent in [0, 100, 700, whole.len() / 2] {
        let answer = target.cut_in_mid_stream(&whole, sent);
        assert!(answer.starts_with("HTTP/1.1 422 "), "{sent}: {answer}");
        let reasons = ["broke off", "ends in the middle"];
        assert!(reasons.iter().any(|reason| answer.contains(reason)), "{sent}: {answer}");
    }
    let text = target.refuses(&b"no archive ".repeat(100));
    assert!(text.starts_with("the bundle is refused: the archive is damaged"), "{text}");
    insta::assert_snapshot!(target.refuses(b""), @"the bundle is refused: not a bundle: it has no index.json");
    target.stop();
}

/// What a server says that must not start; the state folder is `[state]`.
#[track_caller]
fn does_not_start(state: &Path) -> String {
    let mut serve = Command::new("timeout");
    serve.arg("60").arg(wisp().get_program()).args(["serve", "--cache", "none", "--log", "error"]);
    serve.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let said = refused(&serve.arg("--state").arg(state).output().expect("wisp runs"));
    said.replace(state.to_str().expect("UTF-8"), "[state]")
}

#[test]
fn an_index_that_cannot_be_read_is_left_alone() {
    let Target { server, state, scratch: _scratch } = Target::start(&[]);
    assert!(server.stop().0);
    let (index, blobs) = (state.join("index.json"), state.join("blobs/sha256"));
    let good = fs::read(&index).expect("an index");
    fs::write(&index, &good[..good.len() - 1]).expect("written");
    let said = does_not_start(&state);
    let (said, _where) = said.split_once(" at line").expect("where it is damaged");
    insta::assert_snapshot!(said, @"wisp: storage: the index [state]/index.json is damaged: EOF while parsing an object");
    fs::write(&index, r#"{"format": 2, "deployments": []}"#).expect("written");
    insta::assert_snapshot!(does_not_start(&state), @"wisp: storage: the index [state]/index.json has format 2 of a newer wisp, this one reads format 1");
    assert_eq!(fs::read_dir(&blobs).expect("a folder").count(), 4);

    fs::write(&index, good).expect("written");
    let server = Server::start_admin(&state, &[], &[]);
    assert_eq!(server.infer("add", &add_request()).floats("sum"), [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn a_state_folder_has_one_server() {
    let target = Target::start(&[]);
    let process = fs::read_to_string(target.state.join("wisp.lock")).expect("a lock");
    for said in [does_not_start(&target.state), refused(&verify(&target.state))] {
        assert!(said.contains(" is in use by another wisp (process "), "{said}");
        assert!(said.ends_with(&format!("(process {process})")), "{said}");
    }
    target.is_unharmed();
    target.stop();
}

#[test]
fn a_state_folder_that_cannot_be_made() {
    let scratch = scratch();
    let file = scratch.path().join("file");
    fs::write(&file, "").expect("a file");
    insta::assert_snapshot!(does_not_start(&file.join("state")), @"wisp: storage: [state]: Not a directory (os error 20)");
    insta::assert_snapshot!(does_not_start(&file), @"wisp: storage: [state]: File exists (os error 17)");
}

#[test]
fn a_state_folder_that_is_read_only() {
    let scratch = scratch();
    let state = scratch.path().join("state");
    fs::create_dir(&state).expect("a folder");
    let script = r#"mount -t tmpfs none "$1" && mount -o remount,ro "$1" && echo mounted &&
        exec "$0" serve --state "$1" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0"#;
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "-rm", "sh", "-c", script]).arg(wisp().get_program());
    let output = command.arg(&state).output().expect("unshare runs");
    if !output.stdout.starts_with(b"mounted") {
        eprintln!("not tested: nothing can be mounted here");
        return;
    }
    let said = refused(&output);
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("wisp: storage: ") && last.contains("Read-only file system"),
        "{said}"
    );
}

#[test]
fn a_full_disk_refuses_what_comes_and_serves_on() {
    let scratch = scratch();
    let state = scratch.path().join("state");
    fs::create_dir(&state).expect("a folder");
    let mount = ["-rm", "mount", "-t", "tmpfs", "none"];
    let mounted = Command::new("unshare").args(mount).arg(&state).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("not tested: nothing can be mounted here");
        return;
    }
    let script = r#"echo $$ && mount -t tmpfs -o size=1m none "$1" &&
        exec "$0" serve --cache none --state "$1" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0"#;
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "-rm", "sh", "-c", script]).arg(wisp().get_program());
    let server = command.arg(&state).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut server = server.expect("a server starts");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let mut last_word = || {
        let line = lines.next().expect("a line").expect("UTF-8");
        line.rsplit(' ').next().expect("a word").to_owned()
    };
    let (process, url, admin) = (last_word(), last_word(), last_word());
    let deploy = |bundle: &Path| {
        let deploy = wisp().arg("deploy").arg(bundle).args(["--admin", &admin]).output();
        deploy.expect("wisp runs")
    };
    succeeded(&deploy(&fixture("models/add.onnx")));
    let large = scratch.path().join("large.wisp");
    fs::write(&large, Parts::with_notes(scratch.path(), &vec![0; 2 << 20]).archive())
        .expect("a file");
    let said = refused(&deploy(&large));
    assert!(said.starts_with("wisp: storage: ") && said.contains("No space left"), "{said}");
    let staging = format!("/proc/{process}/root{}/staging", state.display());
    assert_eq!(fs::read_dir(staging).expect("the server's folder").count(), 0);

    let infer = ureq::post(format!("{url}/v2/models/add/infer"));
    let answer = infer.header("content-type", "application/json").send(add_request().to_string());
    assert_eq!(answer.expect("it answers").status().as_u16(), 200);
    succeeded(&deploy(&fixture("models/echo.onnx")));
    let killed = Command::new("kill").arg(server.id().to_string()).status();
    assert!(killed.is_ok_and(|status| status.success()));
    assert!(server.wait().is_ok_and(|status| status.success()));
}
