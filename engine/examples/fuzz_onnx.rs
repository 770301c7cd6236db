//! Breaks small graphs at random and hands them to every engine, each in a process that may die
//! of it; writes what was lost to target/fuzz/.
//!
//! ```text
//! fuzz_onnx [SECONDS] [SEED]      60 s, a seed from the clock; exit code 1 for findings
//! fuzz_onnx FILE.onnx …           what comes of these
//! ```
//!
//! A finding is a file that ends the process (an abort, a stack overflow, too much memory) or
//! keeps it busy; panics are errors to the engine. It becomes a case of `tests/malformed.rs`.

#[path = "../tests/support/encode.rs"]
mod encode;
#[path = "../tests/support/mutate.rs"]
mod mutate;
#[path = "../tests/support/worker.rs"]
mod worker;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use encode::encode;
use mutate::{Random, break_bytes, break_message, corpus};
use prost::Message;
use tract_onnx::pb::ModelProto;
use wisp_engine::EngineKind;
use worker::Worker;

const ENGINES: [EngineKind; 2] = [EngineKind::Tract, EngineKind::Rten];
const SECONDS: u64 = 60;
const CASE: Duration = Duration::from_secs(20);

/// As the server has it.
#[global_allocator]
static ALLOCATOR: wisp_engine::memory::Allocator = wisp_engine::memory::Allocator::new();

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "worker") {
        return worker::serve();
    }
    let mut worker = Worker::new(start, CASE);
    let files = arguments.iter().filter(|argument| argument.ends_with(".onnx"));
    let mut files = files.peekable();
    if files.peek().is_some() {
        for file in files {
            let onnx = fs::read(file).expect("a file that can be read");
            println!(
                "{file}: {}",
                worker.ask(&onnx, &ENGINES).unwrap_or_else(|lost| format!("LOST: {lost}"))
            );
        }
        return;
    }
    let number = |index: usize| arguments.get(index).map(|text| text.parse().expect("a number"));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let seed = number(1).unwrap_or_else(clock);
    let findings = fuzz(&mut worker, Duration::from_secs(number(0).unwrap_or(SECONDS)), seed);
    std::process::exit(i32::from(findings > 0));
}

fn start() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("worker");
    command
}

fn fuzz(worker: &mut Worker, time: Duration, seed: u64) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz");
    fs::create_dir_all(&folder).expect("a folder for findings");
    let corpus = corpus();
    let decoded: Vec<ModelProto> =
        corpus.iter().filter_map(|(_, onnx)| ModelProto::decode(&onnx[..]).ok()).collect();
    let mut random = Random(seed | 1);
    println!("seed {seed}, {} graphs", corpus.len());
    let (since, mut cases, mut findings) = (Instant::now(), 0u64, 0);
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    while since.elapsed() < time {
        let onnx = broken(&corpus, &decoded, &mut random);
        cases += 1;
        match worker.ask(&onnx, &ENGINES) {
            Ok(answer) => *outcomes.entry(kind(&answer)).or_default() += 1,
            Err(lost) => {
                findings += 1;
                let file = folder.join(format!("{seed}-{cases}.onnx"));
                fs::write(&file, &onnx).expect("a finding is written");
                println!("{}: {lost}", file.display());
            }
        }
    }
    println!("{cases} cases in {:?}, {findings} findings", since.elapsed());
    outcomes.iter().for_each(|(outcome, count)| println!("{count:8}  {outcome}"));
    findings
}

fn broken(corpus: &[(String, Vec<u8>)], decoded: &[ModelProto], random: &mut Random) -> Vec<u8> {
    if random.below(4) == 0 {
        let (_, mut onnx) = random.of(corpus).expect("a corpus").clone();
        break_bytes(&mut onnx, random);
        return onnx;
    }
    let mut model = random.of(decoded).expect("a corpus").clone();
    let donor = random.of(decoded).expect("a corpus");
    break_message(&mut model, donor, random);
    encode(&model)
}

/// The answer without its reasons.
fn kind(answer: &str) -> String {
    let engines = ["tract", "rten"].map(|engine| {
        let said = answer.split_once(&format!("{engine}: ")).map_or("", |(_, said)| said);
        let words = ["panicked", "refused", "loaded"];
        let first = said.split(';').next().unwrap_or_default();
        let word = words.iter().find(|word| first.contains(**word)).unwrap_or(&"other");
        format!("{engine} {word}")
    });
    engines.join(", ")
}
