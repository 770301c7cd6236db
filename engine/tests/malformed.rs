//! Files that are broken or hostile: each engine refuses them or answers. None may end the
//! process, keep it busy or take memory without bound, whatever it says of the file.

#[path = "support/attributes.rs"]
mod attributes;
#[path = "support/build.rs"]
mod build;
#[path = "support/encode.rs"]
mod encode;
#[path = "support/hostile.rs"]
mod hostile;
#[path = "support/loops.rs"]
mod loops;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/mutate.rs"]
mod mutate;
#[path = "support/weights.rs"]
mod weights;
#[path = "support/worker.rs"]
mod worker;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use build::{FLOAT, INT64, body, longs, model, node, value};
use encode::encode;
use mutate::{Random, break_bytes, break_message, corpus};
use prost::Message;
use tract_onnx::pb::ModelProto;
use wisp_engine::{Cores, EngineKind, Failure, Graph, Helpers, Watch};
use worker::Worker;

/// As the server has it.
#[global_allocator]
static ALLOCATOR: wisp_engine::memory::Allocator = wisp_engine::memory::Allocator::new();

const WORKER: &str = "WISP_TEST_WORKER";

/// Of the clock, on a machine that does other things, too.
const LIMIT: Duration = Duration::from_secs(20);

/// Graphs whose bytes are broken at every place and bit by bit: one a kind.
const KINDS: [&str; 8] = [
    "fused_column_depthwise",
    "lstm_forward",
    "if_of_the_run_true",
    "classifier_3_base",
    "svm_rbf_2",
    "ngrams_tfidf",
    "normalizer_lower",
    "loop",
];

#[test]
fn hostile_graphs_do_no_harm() {
    assert_unharmed(hostile::cases());
}

#[test]
fn attributes_out_of_bounds_do_no_harm() {
    assert_unharmed(attributes::cases());
}

#[test]
fn computed_sizes_do_no_harm() {
    assert_unharmed(hostile::computed());
}

#[test]
fn files_cut_anywhere_do_no_harm() {
    let cut = |(name, onnx): (String, Vec<u8>)| {
        // Every length of a small file, two hundred of a large one.
        let step = onnx.len().div_ceil(200);
        let lengths = (0..onnx.len()).step_by(step);
        let cuts =
            lengths.map(|length| (format!("{name} cut at {length}"), onnx[..length].to_vec()));
        cuts.collect::<Vec<_>>()
    };
    assert_unharmed(kinds().into_iter().flat_map(cut).collect());
}

#[test]
fn flipped_bits_do_no_harm() {
    let mut cases = Vec::new();
    for (name, onnx) in kinds() {
        for seed in 1..=200 {
            let mut bytes = onnx.clone();
            break_bytes(&mut bytes, &mut Random(seed));
            cases.push((format!("{name}, bytes broken with seed {seed}"), bytes));
        }
    }
    assert_unharmed(cases);
}

#[test]
fn messages_that_say_other_things_do_no_harm() {
    let corpus = corpus();
    let decoded: Vec<ModelProto> =
        corpus.iter().filter_map(|(_, onnx)| ModelProto::decode(&onnx[..]).ok()).collect();
    let mut random = Random(1);
    let mut cases = Vec::new();
    for (index, (name, _)) in corpus.iter().enumerate().filter(|(index, _)| *index < decoded.len())
    {
        for round in 0..4 {
            let mut model = decoded[index].clone();
            let donor = random.of(&decoded).expect("a corpus");
            break_message(&mut model, donor, &mut random);
            cases.push((format!("{name}, round {round}"), encode(&model)));
        }
    }
    assert_unharmed(cases);
}

#[test]
fn what_must_be_refused_is() {
    for (name, onnx, reason) in hostile::refused() {
        for engine in [EngineKind::Tract, EngineKind::Rten] {
            let refused = Graph::load(&onnx, engine).expect_err(&name).to_string();
            assert!(refused.contains(reason), "{name}, {engine}: {refused}");
        }
    }
}

/// Of what does no harm, the cases that no engine may answer either.
#[test]
fn what_makes_no_sense_is_refused() {
    const CASES: [&str; 26] = [
        "weights: raw [3]",
        "weights: raw [5]",
        "weights: none [1099511627776]",
        "weights: raw [4611686018427387904, 4]",
        "weights: seventeen bytes",
        "weights: type 16",
        "weights: type 16, none",
        "weights: type 17",
        "weights: type 17, none",
        "weights: type 22",
        "weights: type 24",
        "weights: type 26, none",
        "weights: 3 of type 22 in 1",
        "weights: 3 of type 22 in 3, listed",
        "weights: 3 of type 19 in 1, listed",
        "weights: 5 of type 23 in 4",
        "weights: 5 of type 25 in 1",
        "weights: 5 of type 25 in 1, listed",
        "structure: its own input",
        "structure: two in a circle",
        "structure: weights named as the output",
        "structure: an unknown operator",
        "sizes: Expand 1099511627776",
        "sizes: Range of BF16",
        "sizes: Range of FP16",
        "sizes: Reshape of 1048576 axes by a node",
    ];
    let cases = hostile::cases();
    for wanted in CASES {
        let (_, onnx) = cases.iter().find(|(name, _)| name == wanted).expect(wanted);
        for engine in [EngineKind::Tract, EngineKind::Rten] {
            assert!(Graph::load(onnx, engine).is_err(), "{wanted}, {engine}");
        }
    }
}

#[test]
fn what_is_sound_is_not_refused() {
    for (name, onnx) in kinds() {
        assert!(Graph::load_any(&onnx, &[EngineKind::Tract, EngineKind::Rten]).is_ok(), "{name}");
    }
}

/// Beside quick ones without end: a run on a worker has its caller give way, who sees what it was told.
#[test]
fn a_loop_that_gives_way_ends_when_it_is_over() {
    struct Beside(Helpers, AtomicUsize);

    impl Watch for Beside {
        fn is_over(&self) -> bool {
            self.1.load(Ordering::Relaxed) > 10
        }

        fn give_way(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }

        fn helpers(&self) -> Option<Helpers> {
            Some(self.0.clone())
        }
    }

    let (sender, ended) = mpsc::channel();
    // Not waited for: it would not end.
    thread::spawn(move || {
        let endless = loops::endless("endless").pop().expect("a loop of a constant").1;
        let graph = Graph::load(&endless, EngineKind::Tract).expect("a graph");
        let cores = Cores::new(1);
        let (_own, _waits) = (cores.wait_for_one(), cores.take_quick());
        let watch = Beside(Helpers { cores: cores.clone(), most: 0 }, AtomicUsize::new(0));
        sender.send(graph.run(&mut [memory::one()], &watch)).expect("it is waited for");
    });
    let outcome = ended.recv_timeout(Duration::from_secs(60)).expect("an end");
    assert!(outcome == Err(Failure::Stopped), "{outcome:?}");
}

/// With ends that are constants, and with ends that come as an input.
#[test]
fn thousands_of_slices_load() {
    let names: Vec<String> = (0..=2000).map(|index| format!("v{index}")).collect();
    let slice = |pair: &[String]| node("Slice", &[&pair[0], "one", "ends"], &[&pair[1]], &[]);
    let mut nodes = vec![node("Relu", &["x"], &[&names[0]], &[])];
    nodes.extend(names.windows(2).map(slice));
    nodes.push(node("Relu", &[&names[2000]], &["y"], &[]));
    let (x, y) = (value("x", FLOAT, &[2001]), value("y", FLOAT, &[-1]));
    let (one, ends) = (longs("one", &[1], &[1]), longs("ends", &[1], &[i64::MAX]));
    let constant = body(&[x], &[y], &[one, ends], nodes);
    let mut of_the_run = constant.clone();
    of_the_run.initializer.pop();
    of_the_run.input.push(value("ends", INT64, &[1]));
    for (name, graph) in [("constant", constant), ("of the run", of_the_run)] {
        let loaded = Graph::load(&encode(&model(graph)), EngineKind::Tract);
        assert!(loaded.is_ok(), "{name}: {loaded:?}");
    }
}

/// Not a test: the process that the others hand their cases to.
#[test]
fn worker_process() {
    if std::env::var_os(WORKER).is_some() {
        worker::serve();
    }
}

fn start() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", "worker_process", "--nocapture"]).env(WORKER, "1");
    command
}

fn kinds() -> Vec<(String, Vec<u8>)> {
    let corpus = corpus();
    let of = |kind: &str| corpus.iter().find(|(name, _)| name == kind).expect(kind).clone();
    let quantised = ("quantised".to_owned(), build::quantised());
    KINDS.into_iter().map(of).chain([quantised]).collect()
}

#[track_caller]
fn assert_unharmed(cases: Vec<(String, Vec<u8>)>) {
    let mut worker = Worker::new(start, LIMIT);
    let mut lost = Vec::new();
    let asked = cases.len();
    for (name, onnx) in cases {
        match worker.ask(&onnx, &[EngineKind::Tract, EngineKind::Rten]) {
            Ok(answer) => println!("{name}: {answer}"),
            Err(how) => {
                println!("LOST {name}: {how}");
                lost.push(format!("{name}: {how}"));
            }
        }
    }
    assert!(lost.is_empty(), "{} of {asked} cases:\n{}", lost.len(), lost.join("\n"));
}
