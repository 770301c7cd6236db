//! A process that loads and runs whatever graphs it is given, held to a time and to memory: where
//! an engine aborts, overflows its stack, hangs or eats, that is told and the next case has a
//! process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use wisp_engine::tensor::Contract;
use wisp_engine::{EngineKind, Failure, Graph, Watch, generated};

/// What a case may allocate: more than any tensor that the engine lets a graph have.
const MEMORY_BYTES: u64 = 6 << 30;

/// What is more is not run.
const MAX_INPUT_BYTES: usize = 1 << 20;

/// When a run is told to stop, and what it may take.
const RUN: Duration = Duration::from_secs(1);
const RUN_BYTES: usize = 256 << 20;

/// Starts each line of the worker that is an answer, as whoever started it may write, too.
const MARK: &str = "@ ";

pub struct Worker {
    start: fn() -> Command,
    limit: Duration,
    process: Option<Process>,
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    said: Receiver<String>,
}

impl Worker {
    /// `start` makes the command whose process calls [`serve`]; a case may take `limit`.
    pub fn new(start: fn() -> Command, limit: Duration) -> Self {
        Self { start, limit, process: None }
    }

    /// What came of the graph in each engine, on one line.
    ///
    /// # Errors
    /// How the process was lost.
    pub fn ask(&mut self, onnx: &[u8], engines: &[EngineKind]) -> Result<String, String> {
        let process = match self.process.take() {
            Some(process) => process,
            None => Process::start((self.start)()),
        };
        let process = self.process.insert(process);
        let mut head = (onnx.len() as u32).to_le_bytes().to_vec();
        head.push(engines.iter().fold(0, |bits, &engine| bits | (1 << engine as u8)));
        let sent = process.stdin.write_all(&head);
        // A process that is gone is told of below.
        let _ = sent.and_then(|()| process.stdin.write_all(onnx));
        let _ = process.stdin.flush();
        let answer = process.lines.recv_timeout(self.limit);
        let lost = match answer {
            // A run that was given up may go on.
            Ok(line) if line.contains("stopped") => {
                self.end();
                return Ok(line);
            }
            Ok(line) => return Ok(line),
            Err(RecvTimeoutError::Timeout) => format!("no answer within {:?}", self.limit),
            Err(RecvTimeoutError::Disconnected) => "ended".to_owned(),
        };
        Err(format!("{lost}: {}", self.end()))
    }

    /// Ends the process; says how it ended and what it said last.
    fn end(&mut self) -> String {
        let Some(Process { mut child, stdin, said, .. }) = self.process.take() else {
            return String::new();
        };
        drop(stdin);
        // Gone already, where it fails.
        let _ = child.kill();
        let status = child.wait().expect("a child of ours");
        let said: Vec<String> = said.iter().filter(|line| !line.trim().is_empty()).collect();
        format!("{status}, {}", said.last().map(String::as_str).unwrap_or_default())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("this program starts again");
        let stdin = child.stdin.take().expect("piped");
        let lines = lines(child.stdout.take().expect("piped"), MARK);
        let said = lines_of(child.stderr.take().expect("piped"));
        Self { child, stdin, lines, said }
    }
}

fn lines(pipe: impl Read + Send + 'static, mark: &'static str) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // The line of a test may have begun already.
            if let Some((_, answer)) = line.split_once(mark)
                && sender.send(answer.to_owned()).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    lines(pipe, "")
}

/// Answers cases from stdin until it ends; in the process that `start` makes.
pub fn serve() {
    let set = |resource, most| {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .expect("a lower limit");
    };
    set(Resource::Core, 0);
    set(Resource::Data, MEMORY_BYTES);
    // The engine turns panics into errors; thousands of them need not be read.
    std::panic::set_hook(Box::new(|_| {}));
    let mut stdin = std::io::stdin().lock();
    let mut head = [0; 5];
    while stdin.read_exact(&mut head).is_ok() {
        let [length @ .., engines] = head;
        let mut onnx = vec![0; u32::from_le_bytes(length) as usize];
        stdin.read_exact(&mut onnx).expect("as many bytes as were said");
        let asked =
            EngineKind::ALL.into_iter().filter(|&engine| engines & (1 << engine as u8) != 0);
        let answers = asked.map(|engine| {
            let answer = try_graph(&onnx, engine);
            format!("{engine}: {}", answer.replace(['\n', '\r'], " "))
        });
        println!("{MARK}{}", answers.collect::<Vec<_>>().join("; "));
    }
}

/// A run that began then.
struct Limited(Instant);

impl Watch for Limited {
    fn is_over(&self) -> bool {
        self.0.elapsed() > RUN
    }

    fn memory(&self) -> usize {
        RUN_BYTES
    }
}

fn try_graph(onnx: &[u8], engine: EngineKind) -> String {
    let graph = match Graph::load(onnx, engine) {
        Ok(graph) => graph,
        Err(error) => return format!("refused, {error}"),
    };
    let answers = [1, 3].map(|size| run(&graph, size));
    format!("loaded, {}", answers.join(", "))
}

/// Runs it with `size` for each size that is free.
fn run(graph: &Graph, size: i64) -> String {
    let mut contract: Contract = graph.contract().clone();
    for spec in &mut contract.inputs {
        spec.shape.iter_mut().filter(|free| **free < 0).for_each(|free| *free = size);
    }
    let Some(mut inputs) = generated(&contract) else { return "not run".to_owned() };
    // A million steps of a recurrent operator are honest work, and one operator is not left.
    if inputs.iter().map(|input| input.data.len()).sum::<usize>() > MAX_INPUT_BYTES {
        return "not run".to_owned();
    }
    match graph.run(&mut inputs, &Limited(Instant::now())) {
        Ok(_) => "ran".to_owned(),
        Err(Failure::Refused(reason)) => format!("refused to run, {reason}"),
        Err(Failure::Stopped) => "stopped".to_owned(),
        Err(failure) => format!("failed, {failure}"),
    }
}
