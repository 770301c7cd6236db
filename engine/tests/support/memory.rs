//! Runs that ask for more memory than they may end alone: with an error, in time, and what they
//! took goes back.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tract_onnx::pb::{NodeProto, TensorProto};

use crate::build::{
    BOOL, FLOAT, INT64, STRING, body, file, graph, int, longs, model, node, raw, singles, tensor,
    value,
};
use crate::encode::encode;
use wisp_engine::memory::kept;
use wisp_engine::tensor::{Datatype, Value, push_bytes_element};
use wisp_engine::{Cores, EngineKind, Failure, Graph, Helpers, Watch};

const MIB: usize = 1 << 20;

/// ONNX's numbers of them.
const UINT8: i32 = 2;
const INT8: i32 = 3;
const INT32: i32 = 6;

/// A run that may take so much.
struct Limited {
    since: Instant,
    bytes: usize,
    elsewhere_ns: AtomicU64,
}

impl Limited {
    fn to(bytes: usize) -> Self {
        Self { since: Instant::now(), bytes, elsewhere_ns: AtomicU64::new(0) }
    }
}

impl Watch for Limited {
    fn is_over(&self) -> bool {
        self.since.elapsed() > Duration::from_secs(20)
    }

    fn memory(&self) -> usize {
        self.bytes
    }

    fn computed_elsewhere(&self, cpu: Duration) {
        self.elsewhere_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
    }
}

fn numbers(numbers: &[i64]) -> Value<'static> {
    let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Value { datatype: Datatype::Int64, shape: vec![numbers.len()], data: Cow::Owned(data) }
}

/// As many zeros as the input says, all added up in the end.
fn zeros() -> Vec<u8> {
    let nodes = vec![
        node("ConstantOfShape", &["x"], &["zeros"], &[]),
        node("Exp", &["zeros"], &["ones"], &[]),
        node("ReduceSum", &["ones"], &["y"], &[int("keepdims", 0)]),
    ];
    let (x, y) = (value("x", INT64, &[1]), value("y", FLOAT, &[]));
    encode(&model(body(&[x], &[y], &[], nodes)))
}

/// Each step twice as large as the one before.
fn doubled(times: usize) -> Vec<u8> {
    let names: Vec<String> = (0..=times).map(|index| format!("v{index}")).collect();
    let mut nodes = vec![node("Relu", &["x"], &[&names[0]], &[])];
    for pair in names.windows(2) {
        nodes.push(node("Concat", &[&pair[0], &pair[0]], &[&pair[1]], &[int("axis", 0)]));
    }
    nodes.push(node("ReduceSum", &[&names[times]], &["y"], &[int("keepdims", 0)]));
    let (x, y) = (value("x", FLOAT, &[1]), value("y", FLOAT, &[]));
    encode(&model(body(&[x], &[y], &[], nodes)))
}

pub fn one() -> Value<'static> {
    let data = Cow::Owned(1.0f32.to_le_bytes().to_vec());
    Value { datatype: Datatype::Fp32, shape: vec![1], data }
}

fn number(outputs: &[Value<'_>]) -> f32 {
    assert_eq!(outputs[0].datatype, Datatype::Fp32);
    f32::from_le_bytes(outputs[0].data[..4].try_into().expect("a number"))
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = status.split(' ').nth(1).expect("a field").parse().expect("a number");
    pages * rustix::param::page_size()
}

#[test]
fn sizes_that_a_client_asks_for_are_bounded() {
    for engine in [EngineKind::Tract, EngineKind::Rten] {
        let graph = Graph::load(&zeros(), engine).expect("loads");
        let run = |count: i64, bytes| graph.run(&mut [numbers(&[count])], &Limited::to(bytes));
        assert_eq!(number(&run(1000, 64 * MIB).expect("fits")), 1000.0, "{engine}");
        // The last, as bytes, is the most that can be asked for.
        for count in [100 << 20, 1 << 40, (1 << 61) - 2] {
            let failed = run(count, 64 * MIB).expect_err(&format!("{engine}, {count}"));
            let is_told = matches!(&failed, Failure::OutOfMemory(reason)
                if reason == "asked for more than 64 MiB of memory");
            // A size that no tensor has is told of as such.
            assert!(is_told || count >= 1 << 40, "{engine}, {count}: {failed:?}");
        }
        assert_eq!(number(&run(1000, 64 * MIB).expect("goes on")), 1000.0, "{engine}");
    }
}

/// tract cuts them off at 32 bits: to it they would be ones.
#[test]
fn sizes_that_no_axis_has_are_refused() {
    const SIZE: i64 = (1 << 32) + 1;
    for operator in ["Expand", "Reshape", "Tile", "TopK"] {
        let outputs: &[&str] = if operator == "TopK" { &["y", "places"] } else { &["y"] };
        let nodes = vec![node(operator, &["x", "sizes"], outputs, &[])];
        let inputs = [value("x", FLOAT, &[1]), value("sizes", INT64, &[1])];
        let onnx = encode(&model(body(&inputs, &[value("y", FLOAT, &[-1])], &[], nodes)));
        let graph = Graph::load(&onnx, EngineKind::Tract).expect("loads");
        let run = |size: i64| graph.run(&mut [one(), numbers(&[size])], &Limited::to(64 * MIB));
        assert_eq!(number(&run(1).expect("fits")), 1.0, "{operator}");
        let failed = run(SIZE).expect_err(operator);
        assert!(failed.to_string().contains(&SIZE.to_string()), "{operator}: {failed}");
    }
}

#[test]
fn what_a_stopped_run_took_goes_back() {
    const LIMIT: usize = 256 * MIB;
    for engine in [EngineKind::Tract, EngineKind::Rten] {
        let graph = Graph::load(&doubled(30), engine).expect("loads");
        let before = resident();
        for _ in 0..12 {
            let failed = graph.run(&mut [one()], &Limited::to(LIMIT));
            assert!(matches!(failed, Err(Failure::OutOfMemory(_))), "{engine}: {failed:?}");
        }
        let kept = resident().saturating_sub(before);
        assert!(kept < 1024 * MIB, "{engine}: {} MiB are kept", kept / MIB);
    }
}

/// As many tensors as the input says, of 800 KB each: less than an allocator takes apart.
fn pile() -> Vec<u8> {
    let flag = |name: &str| value(name, BOOL, &[]);
    let inner = body(
        &[value("i", INT64, &[]), flag("c"), value("v", FLOAT, &[1])],
        &[flag("again"), value("same", FLOAT, &[1]), value("row", FLOAT, &[200_000])],
        &[],
        vec![
            node("Identity", &["c"], &["again"], &[]),
            node("Identity", &["v"], &["same"], &[]),
            node("Expand", &["v", "wide"], &["row"], &[]),
        ],
    );
    let inits = [raw("true", BOOL, &[], &[1]), longs("wide", &[1], &[200_000])];
    let nodes = vec![
        node("Cast", &["x"], &["one"], &[int("to", FLOAT.into())]),
        node("Squeeze", &["x"], &["times"], &[]),
        node("Loop", &["times", "true", "one"], &["last", "rows"], &[graph("body", inner)]),
        node("ReduceSum", &["rows"], &["y"], &[int("keepdims", 0)]),
    ];
    let (x, y) = (value("x", INT64, &[1]), value("y", FLOAT, &[]));
    encode(&model(body(&[x], &[y], &inits, nodes)))
}

#[test]
fn small_tensors_go_back_too() {
    const LIMIT: usize = 128 * MIB;
    let graph = Graph::load(&pile(), EngineKind::Rten).expect("loads");
    let run = |count: i64| graph.run(&mut [numbers(&[count])], &Limited::to(LIMIT));
    assert_eq!(number(&run(2).expect("fits")), 800_000.0);
    let before = resident();
    for _ in 0..14 {
        let failed = run(3000);
        assert!(matches!(failed, Err(Failure::OutOfMemory(_))), "{failed:?}");
    }
    let kept = resident().saturating_sub(before);
    // Other tests run beside it.
    assert!(kept < 1024 * MIB, "{} MiB are kept", kept / MIB);
}

#[test]
fn a_graph_that_does_so_often_is_given_up_for_a_while() {
    let graph = Graph::load(&zeros(), EngineKind::Rten).expect("loads");
    let run = |count: i64| graph.run(&mut [numbers(&[count])], &Limited::to(16 * MIB));
    let reasons = (0..40).map(|_| run(100 << 20).expect_err("does not fit").to_string());
    let given_up = reasons.into_iter().find(|reason| reason.contains("runs of it asked for more"));
    assert!(given_up.is_some_and(|reason| reason.contains("within 60s")));
    run(3).expect_err("not now");
    // Another is not.
    let other = Graph::load(&zeros(), EngineKind::Rten).expect("loads");
    let ran = other.run(&mut [numbers(&[3])], &Limited::to(16 * MIB)).expect("fits");
    assert_eq!(number(&ran), 3.0);
}

/// Runs its own graph where it gives way, as whoever has its core then may.
struct RunsOn {
    limited: Limited,
    graph: Arc<Graph>,
    cores: Arc<Cores>,
    gave_way: AtomicU64,
}

impl Watch for RunsOn {
    fn is_over(&self) -> bool {
        self.limited.is_over()
    }

    fn memory(&self) -> usize {
        self.limited.memory()
    }

    fn helpers(&self) -> Option<Helpers> {
        Some(Helpers { cores: self.cores.clone(), most: 0 })
    }

    fn give_way(&self) {
        let (graph, (ended, end)) = (self.graph.clone(), mpsc::channel());
        let run = move || ended.send(graph.run(&mut [numbers(&[3])], &Limited::to(MIB)));
        thread::spawn(run);
        let ran = end.recv_timeout(Duration::from_secs(60)).expect("it waits for who gives way");
        ran.expect("fits");
        self.gave_way.fetch_add(1, Ordering::Relaxed);
    }
}

/// Two tensors of 256 MiB fit, that of both does not: the run gives way before, but no more while it ends.
#[test]
fn a_run_that_ends_for_its_memory_holds_up_nobody() {
    let nodes = vec![
        node("ConstantOfShape", &["x"], &["zeros"], &[]),
        node("Add", &["zeros", "zeros"], &["sums"], &[]),
        node("Concat", &["zeros", "sums"], &["both"], &[int("axis", 0)]),
        node("ReduceSum", &["both"], &["y"], &[int("keepdims", 0)]),
    ];
    let (x, y) = (value("x", INT64, &[1]), value("y", FLOAT, &[]));
    let onnx = encode(&model(body(&[x], &[y], &[], nodes)));
    let graph = Arc::new(Graph::load(&onnx, EngineKind::Rten).expect("loads"));
    graph.run(&mut [numbers(&[3])], &Limited::to(MIB)).expect("fits");
    let cores = Cores::new(1);
    let _caller = cores.wait_for_one();
    let _waits = cores.take_quick();
    for _ in 0..3 {
        let watch = RunsOn {
            limited: Limited::to(768 * MIB),
            graph: graph.clone(),
            cores: cores.clone(),
            gave_way: AtomicU64::new(0),
        };
        let failed = graph.run(&mut [numbers(&[64 << 20])], &watch);
        assert!(matches!(failed, Err(Failure::OutOfMemory(_))), "{failed:?}");
        assert!(watch.gave_way.into_inner() > 1, "nobody was let in");
    }
}

/// rten plans the body of a branch on a thread with a small stack.
#[test]
fn a_deep_branch_ends_nothing() {
    for (depth, loads) in [(900, true), (6000, false)] {
        let line = |names: &[String]| -> Vec<_> {
            names.windows(2).map(|pair| node("Neg", &[&pair[0]], &[&pair[1]], &[])).collect()
        };
        let names: Vec<String> = (0..=depth).map(|index| format!("v{index}")).collect();
        let mut nodes = vec![node("Neg", &["x"], &[&names[0]], &[])];
        nodes.extend(line(&names));
        let deep = body(&[], &[value(&names[depth], FLOAT, &[1])], &[], nodes);
        let flat =
            body(&[], &[value("f", FLOAT, &[1])], &[], vec![node("Neg", &["x"], &["f"], &[])]);
        let branches = [graph("then_branch", deep), graph("else_branch", flat)];
        let nodes = vec![
            node("Cast", &["x"], &["c"], &[int("to", BOOL.into())]),
            node("If", &["c"], &["y"], &branches),
        ];
        let loaded = Graph::load(&file(&[1], &[], nodes), EngineKind::Rten);
        assert_eq!(loaded.is_ok(), loads, "{depth}: {loaded:?}");
        if let Ok(graph) = loaded {
            graph.run(&mut [one()], &Limited::to(64 * MIB)).expect("runs");
        }
    }
}

/// What strings hold, and what a convolution packs, is not what their tensors' sizes say.
#[test]
fn what_is_not_in_a_shape_is_bounded_too() {
    // So large that floats do not hold such sums.
    let kernel = vec![100; 32 * 32];
    let weights = [raw("w", UINT8, &[1, 1, 32, 32], &kernel)];
    let free = value("x", UINT8, &[1, 1, -1, -1]);
    let nodes = vec![
        node("ConvInteger", &["x", "w"], &["z"], &[]),
        node("ReduceMax", &["z"], &["y"], &[int("keepdims", 0)]),
    ];
    let onnx = encode(&model(body(&[free], &[value("y", INT32, &[])], &weights, nodes)));
    let graph = Graph::load(&onnx, EngineKind::Tract).expect("loads");
    let run = |side: usize| {
        let data = Cow::Owned(vec![1; side * side]);
        let x = Value { datatype: Datatype::Uint8, shape: vec![1, 1, side, side], data };
        graph.run(&mut [x], &Limited::to(128 * MIB))
    };
    let outputs = run(40).expect("fits");
    assert_eq!(i32::from_le_bytes(outputs[0].data[..4].try_into().expect("a number")), 102_400);
    let failed = run(1000);
    assert!(matches!(failed, Err(Failure::OutOfMemory(_))), "{failed:?}");
}

/// How long copied strings are is known when they come.
#[test]
fn copies_of_strings_are_bounded() {
    let many = longs("many", &[16], &[0; 16]);
    let nodes = vec![
        node("Gather", &["x", "many"], &["copies"], &[]),
        node("Gather", &["copies", "one"], &["y"], &[]),
    ];
    let constants = [many, longs("one", &[1], &[7])];
    let graph = body(&[value("x", STRING, &[-1])], &[value("y", STRING, &[1])], &constants, nodes);
    let graph = Graph::load(&encode(&model(graph)), EngineKind::Tract).expect("loads");
    let run = |length: usize| {
        let mut data = Vec::new();
        push_bytes_element(&mut data, &vec![b'a'; length]).expect("fits");
        let x = Value { datatype: Datatype::Bytes, shape: vec![1], data: Cow::Owned(data) };
        let watch = Limited::to(8 * MIB);
        (graph.run(&mut [x], &watch), watch.elsewhere_ns.into_inner())
    };
    let (outputs, elsewhere) = run(100);
    assert_eq!(outputs.expect("fits")[0].data.len(), 4 + 100);
    assert_eq!(elsewhere, 0, "a worker was asked");
    let (failed, _) = run(4 * MIB);
    assert!(matches!(failed, Err(Failure::OutOfMemory(_))), "{failed:?}");
}

#[test]
fn who_asks_is_told_of_cpu_time_that_others_spent() {
    let onnx = file(
        &[1],
        &[longs("times", &[1], &[1 << 24])],
        vec![node("Expand", &["x", "times"], &["many"], &[]), node("Exp", &["many"], &["y"], &[])],
    );
    let graph = Graph::load(&onnx, EngineKind::Rten).expect("loads");
    let watch = Limited::to(1 << 30);
    graph.run(&mut [one()], &watch).expect("fits");
    let told = Duration::from_nanos(watch.elsewhere_ns.into_inner());
    // Sixteen million of them.
    assert!(told > Duration::from_millis(1), "{told:?}");
    assert!(told < 2 * watch.since.elapsed(), "{told:?}");
}

/// What a graph keeps of the sums of `x`'s products with `count` matrices of so many rows and columns, each
/// made of the constants by the nodes that `made` gives for it and a name.
fn kept_of_matrices(
    (count, side): (usize, i64),
    constants: &[TensorProto],
    made: impl Fn(usize, &str) -> Vec<NodeProto>,
) -> usize {
    let mut nodes = Vec::new();
    let mut products = Vec::new();
    for index in 0..count {
        let matrix = format!("w{index}");
        nodes.extend(made(index, &matrix));
        products.push(format!("y{index}"));
        nodes.push(node("MatMul", &["x", &matrix], &[&products[index]], &[]));
    }
    let products: Vec<&str> = products.iter().map(String::as_str).collect();
    nodes.push(node("Sum", &products, &["y"], &[]));
    let onnx = file(&[1, side], constants, nodes);
    let (graph, bytes) = kept(|| Graph::load(&onnx, EngineKind::Tract));
    graph.expect("loads");
    usize::try_from(bytes).expect("fits")
}

/// As floats, each of these matrices is of 16 MiB.
#[test]
fn matrices_that_are_made_of_a_few_numbers_are_not_kept() {
    let lines: Vec<f32> = (0..2048u16).map(f32::from).collect();
    let factors = (0..16u8).map(|index| singles(&format!("f{index}"), &[], &[index.into()]));
    let lines = [singles("a", &[2048, 1], &lines), singles("b", &[1, 2048], &lines)];
    let constants: Vec<TensorProto> = lines.into_iter().chain(factors).collect();
    let outer = |index: usize, matrix: &str| {
        let (factor, column) = (format!("f{index}"), format!("a{index}"));
        vec![
            node("Mul", &["a", &factor], &[&column], &[]),
            node("Mul", &[&column, "b"], &[matrix], &[]),
        ]
    };
    let kept = kept_of_matrices((16, 2048), &constants, outer);
    assert!(kept < 64 * MIB, "{} MiB", kept / MIB);

    let filled = |index: usize, matrix: &str| {
        let numbers = format!("n{index}");
        let one = tensor("value", raw("", INT8, &[1], &[index as u8]));
        vec![
            node("ConstantOfShape", &["sizes"], &[&numbers], &[one]),
            node("Cast", &[&numbers], &[matrix], &[int("to", FLOAT.into())]),
        ]
    };
    // The bytes are tract's.
    let kept = kept_of_matrices((16, 2048), &[longs("sizes", &[2], &[2048, 2048])], filled);
    assert!(kept < 128 * MIB, "{} MiB", kept / MIB);
}

/// As floats, each of these matrices is of 4 MiB.
#[test]
fn one_constant_by_many_scales_is_not_kept_as_many() {
    let numbers: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
    let scales = (1..=32u8).map(f32::from);
    let one = scales.clone().map(|scale| singles(&format!("s{scale}"), &[], &[scale]));
    let columns = scales.map(|scale| singles(&format!("l{scale}"), &[1024], &[scale; 1024]));
    let numbers = raw("c", UINT8, &[1024, 1024], &numbers);
    let constants: Vec<TensorProto> = [numbers].into_iter().chain(one).chain(columns).collect();
    for name in ["s", "l"] {
        let made = |index: usize, matrix: &str| {
            let scale = format!("{name}{}", index + 1);
            vec![node("DequantizeLinear", &["c", &scale], &[matrix], &[])]
        };
        let kept = kept_of_matrices((32, 1024), &constants, made);
        assert!(kept < 32 * MIB, "{name}: {} MiB", kept / MIB);
    }
}
