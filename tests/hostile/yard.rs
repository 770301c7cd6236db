//! Where hostile guests are let loose: a server of theirs that also serves a bystander, whose
//! answers must stay right all the while, and the marks that each case must leave behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Reply, Server, add_request, fixture, hostile_bundle, scratch};

/// What is tried, and what must come of it.
pub(super) struct Case {
    /// Its row in the table above `mod`.
    pub(super) row: u8,
    /// What the guest is told, which names the case, too.
    pub(super) order: &'static str,
    pub(super) expected: Expected,
}

pub(super) enum Expected {
    /// An error of that status and kind, whose text holds this.
    Fails(u16, &'static str, &'static str),
    /// The guest is told of it, and answers with a text that holds this.
    Says(&'static str),
}

pub(super) const fn fails(
    row: u8,
    order: &'static str,
    status: u16,
    kind: &'static str,
    text: &'static str,
) -> Case {
    Case { row, order, expected: Expected::Fails(status, kind, text) }
}

pub(super) const fn says(row: u8, order: &'static str, text: &'static str) -> Case {
    Case { row, order, expected: Expected::Says(text) }
}

/// Longer than any gauge or line of the log takes to come, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with the bystander `add`.
pub(super) struct Yard {
    pub(super) server: Server,
    _folder: Option<tempfile::TempDir>,
}

impl Yard {
    /// With the bundle `hostile`, whose graph is `echo`. What has no deadline of its own may take
    /// long on a busy machine.
    pub(super) fn of_hostile(limits: &str) -> Self {
        let folder = scratch();
        let bundle = hostile_with_echo(folder.path(), limits);
        let bundles = [bundle, fixture("models/add.onnx")];
        let server = Server::start_with(&bundles, &["--deadline-ms", "50000"]);
        Self::of(server, Some(folder))
    }

    pub(super) fn of_bundles(bundles: &[PathBuf], flags: &[&str]) -> Self {
        let bundles = [bundles, &[fixture("models/add.onnx")]].concat();
        Self::of(Server::start_with(&bundles, flags), None)
    }

    /// One that is deployed to.
    pub(super) fn deployed_to(state: &Path, flags: &[&str]) -> Self {
        Self::of(Server::start_admin(state, &[fixture("models/add.onnx")], flags), None)
    }

    fn of(server: Server, folder: Option<tempfile::TempDir>) -> Self {
        let yard = Self { server, _folder: folder };
        yard.bystander_answers();
        yard
    }

    #[track_caller]
    pub(super) fn bystander_answers(&self) {
        let sum = self.server.infer("add", &add_request()).floats("sum");
        assert_eq!(sum, [2.0, 4.0, 6.0, 8.0]);
    }

    /// Does `work` while the bystander is asked all the time, then waits until nothing of it is
    /// left.
    #[track_caller]
    pub(super) fn beside<T>(&self, work: impl FnOnce() -> T) -> T {
        let (is_done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let came = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) || answered.load(Ordering::Relaxed) == 0 {
                    self.bystander_answers();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _done = SetOnDrop(&is_done);
            work()
        });
        self.settle();
        came
    }

    /// Waits until every gauge is back at zero.
    #[track_caller]
    pub(super) fn settle(&self) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics();
            let busy: Vec<&str> = metrics.lines().filter(|line| is_busy(line)).collect();
            if busy.is_empty() {
                assert!(GAUGES.iter().all(|gauge| metrics.contains(gauge)), "{metrics}");
                return;
            }
            assert!(Instant::now() < patience, "{busy:?}\n{}", self.server.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.server.get("/metrics").body).expect("UTF-8")
    }

    /// A gauge by its name and labels.
    pub(super) fn gauge(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).expect("a gauge")
    }

    /// Requests of a model that failed, by the kind of error; of all kinds where it is empty.
    pub(super) fn failures(&self, model: &str, kind: &str) -> u64 {
        let start = format!("wisp_request_failures_total{{model=\"{model}\",version=\"1\",kind=");
        let kind = format!("\"{kind}\"}}");
        let metrics = self.metrics();
        let counts = metrics.lines().filter_map(|line| {
            let (of, count) = line.strip_prefix(&start)?.split_once(' ')?;
            (kind == "\"\"}" || of == kind).then(|| count.parse::<u64>().expect("a count"))
        });
        counts.sum()
    }

    /// Waits until so many are counted: a client that has gone is noticed a little later.
    #[track_caller]
    pub(super) fn await_failures(&self, model: &str, kind: &str, count: u64) {
        let until = Instant::now() + PATIENCE;
        while self.failures(model, kind) < count {
            assert!(Instant::now() < until, "{} of {count}", self.failures(model, kind));
            thread::yield_now();
        }
        assert_eq!(self.failures(model, kind), count);
    }

    /// Lines of the log that tell of an error of that kind; of any where it is empty.
    fn lines(&self, kind: &str) -> usize {
        let log = self.server.log();
        log.lines().filter(|line| line.contains(&format!("kind=\"{kind}"))).count()
    }

    /// Tells a guest that takes one text what to do.
    pub(super) fn order(&self, model: &str, order: &str) -> Reply {
        self.server.infer_raw(model, "text/plain", order.as_bytes())
    }

    /// Runs cases against `model`, one after the other, each beside the bystander.
    pub(super) fn run(&self, model: &str, cases: &[Case]) {
        for Case { row, order, expected } in cases {
            let name = format!("row {row}, {model}: {order}");
            let before = (self.failures(model, ""), self.lines(""));
            let reply = self.beside(|| self.order(model, order));
            match expected {
                Expected::Says(text) => {
                    let said = reply.strings("did").join(" ");
                    assert!(said.contains(text), "{name}: {said}");
                    assert_eq!(self.failures(model, ""), before.0, "{name}");
                }
                Expected::Fails(status, kind, text) => {
                    assert_eq!(reply.status, *status, "{name}: {:?}", reply);
                    let said = reply.error(*status, kind);
                    assert!(said.contains(text), "{name}: {said}");
                    self.is_told_once(model, kind, before, &name);
                }
            }
            // Whatever it was: the next request is answered.
            if model == "hostile" {
                assert_eq!(self.order(model, "behave").strings("did"), ["behave"], "{name}");
            }
        }
    }

    /// One metric has moved by one, and one line of the log tells why.
    #[track_caller]
    fn is_told_once(&self, model: &str, kind: &str, before: (u64, usize), name: &str) {
        assert_eq!(self.failures(model, ""), before.0 + 1, "{name}");
        assert!(self.failures(model, kind) > 0, "{name}: none of kind {kind}");
        let patience = Instant::now() + PATIENCE;
        while self.lines("") == before.1 {
            assert!(Instant::now() < patience, "{name}: no line\n{}", self.server.log());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.lines(""), before.1 + 1, "{name}\n{}", self.server.log());
        assert!(self.lines(kind) > 0, "{name}");
    }

    /// Stops the server: it must end well, with nothing left, and nothing may have panicked.
    #[track_caller]
    pub(super) fn stop(self) -> String {
        self.settle();
        assert_eq!(self.failures("add", ""), 0);
        let (ended_well, log) = self.server.stop();
        assert!(ended_well && log.contains("late=false live_sandboxes=0"), "{log}");
        assert!(!log.contains("panic in thread"), "{log}");
        log
    }
}

/// Sets a flag however the work ends, so that whoever waits for it does.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const GAUGES: [&str; 4] = [
    "\nwisp_live_sandboxes ",
    "\nwisp_waiting_requests{",
    "\nwisp_held_tensor_bytes{",
    "\nnv_inference_pending_request_count{",
];

/// Whether a line of the metrics is one of the gauges, and not zero.
fn is_busy(line: &str) -> bool {
    GAUGES.iter().any(|gauge| line.starts_with(gauge.trim_start())) && !line.ends_with(" 0")
}

/// Writes the bundle `hostile` with the graph `echo`, which takes floats of any length.
pub(super) fn hostile_with_echo(folder: &Path, limits: &str) -> PathBuf {
    let more = format!("engine = \"tract\"\n[graphs]\necho = \"echo.onnx\"\n[limits]\n{limits}\n");
    let bundle = hostile_bundle(folder, "hostile", &more);
    fs::copy(fixture("models/echo.onnx"), bundle.join("echo.onnx")).expect("a fixture");
    bundle
}
