//! Runs on several threads: the same answers to the last bit, helpers only where cores are free,
//! and their CPU time told.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use tract_onnx::pb;
use wisp_engine::memory::Allocator;
use wisp_engine::tensor::{Datatype, Value};
use wisp_engine::{Cores, EngineKind, Graph, Helpers, Watch};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

const SIDE: usize = 512;
const ROWS: usize = 96;

/// Three products with constant matrices, one behind the other.
fn products() -> Vec<u8> {
    let floats = |seed: usize| {
        let value = move |i: usize| ((i * 7919 + seed) % 1000) as f32 / 1000.0 - 0.5;
        (0..SIDE * SIDE).flat_map(move |i| value(i).to_le_bytes()).collect::<Vec<u8>>()
    };
    let weights = |number: usize| pb::TensorProto {
        name: format!("w{number}"),
        data_type: pb::tensor_proto::DataType::Float as i32,
        dims: vec![SIDE as i64; 2],
        raw_data: floats(number),
        ..pb::TensorProto::default()
    };
    let product = |number: usize| pb::NodeProto {
        op_type: "MatMul".into(),
        input: vec![format!("x{number}"), format!("w{number}")],
        output: vec![format!("x{}", number + 1)],
        ..pb::NodeProto::default()
    };
    let named = |name: &str| {
        use pb::tensor_shape_proto::{Dimension, dimension};
        let dim = [ROWS, SIDE].map(|size| Dimension {
            value: Some(dimension::Value::DimValue(size as i64)),
            ..Dimension::default()
        });
        let tensor = pb::type_proto::Tensor {
            elem_type: pb::tensor_proto::DataType::Float as i32,
            shape: Some(pb::TensorShapeProto { dim: dim.into() }),
        };
        let value = Some(pb::type_proto::Value::TensorType(tensor));
        let r#type = Some(pb::TypeProto { value, ..pb::TypeProto::default() });
        pb::ValueInfoProto { name: name.into(), r#type, ..pb::ValueInfoProto::default() }
    };
    let graph = pb::GraphProto {
        node: (0..3).map(product).collect(),
        initializer: (0..3).map(weights).collect(),
        input: vec![named("x0")],
        output: vec![named("x3")],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto { version: 17, ..pb::OperatorSetIdProto::default() };
    let (graph, opset_import) = (Some(graph), vec![opset]);
    pb::ModelProto { ir_version: 8, graph, opset_import, ..pb::ModelProto::default() }
        .encode_to_vec()
}

struct Asked {
    helpers: Helpers,
    told_ns: AtomicU64,
}

impl Asked {
    fn new(cores: &Arc<Cores>, most: usize) -> Self {
        Self { helpers: Helpers { cores: cores.clone(), most }, told_ns: AtomicU64::new(0) }
    }
}

impl Watch for Asked {
    fn is_over(&self) -> bool {
        false
    }

    fn helpers(&self) -> Option<Helpers> {
        Some(self.helpers.clone())
    }

    fn computed_elsewhere(&self, cpu: Duration) {
        self.told_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
    }
}

#[test]
fn helpers_change_no_bit_and_come_where_cores_are_free() {
    let graph = Graph::load(&products(), EngineKind::Tract).expect("a graph");
    let data: Vec<u8> = (0..ROWS * SIDE).flat_map(|i| ((i % 17) as f32).to_le_bytes()).collect();
    let input = Value { datatype: Datatype::Fp32, shape: vec![ROWS, SIDE], data: Cow::Owned(data) };
    let run = |watch: &dyn Watch| {
        let outputs = graph.run(&mut [input.clone()], watch).expect("an answer");
        outputs[0].data.to_vec()
    };
    let alone = run(&|| false);
    for count in [2, 3, 8] {
        let cores = Cores::new(count);
        let _caller = cores.wait_for_one();
        let asked = Asked::new(&cores, count - 1);
        // A helper that is woken late finds nothing left to do, and other tests may have them.
        let late = Instant::now() + Duration::from_secs(30);
        let mut runs = 0;
        while runs < 200 || asked.told_ns.load(Ordering::Relaxed) == 0 && Instant::now() < late {
            assert!(run(&asked) == alone, "{count} threads give another answer");
            runs += 1;
        }
        assert!(asked.told_ns.into_inner() > 0, "{count} cores, and nobody helped");
    }
    let cores = Cores::new(2);
    let _both = (cores.wait_for_one(), cores.wait_for_one());
    let asked = Asked::new(&cores, 1);
    assert!(run(&asked) == alone);
    assert_eq!(asked.told_ns.into_inner(), 0, "somebody helped, and no core was free");
}

/// Counts how often a run would leave its core to others.
#[derive(Default)]
struct Asking(AtomicU64, Option<Helpers>);

impl Watch for Asking {
    fn is_over(&self) -> bool {
        false
    }

    fn helpers(&self) -> Option<Helpers> {
        self.1.clone()
    }

    fn give_way(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn long_products_give_way_on_the_way() {
    let (graph, input, alone) = asked_alone();
    let asking = Asking::default();
    let outputs = graph.run(&mut [input], &asking).expect("an answer");
    assert!(*outputs[0].data == *alone, "another answer");
    let asked = asking.0.into_inner();
    assert!(asked >= 3 * 8, "{asked} times in three products of 25 million each");
}

/// rten asks nobody on its way but for memory, as each operator does.
#[test]
fn rten_gives_way_between_operators() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let onnx = fs::read(models.join("matmul_slow.onnx")).expect("a fixture");
    let graph = Graph::load(&onnx, EngineKind::Rten).expect("a graph");
    let three = 3f32.to_le_bytes().to_vec();
    let input = Value { datatype: Datatype::Fp32, shape: vec![1], data: three.into() };
    let cores = Cores::new(1);
    let _caller = cores.wait_for_one();
    let asked = || {
        let asking = Asking(AtomicU64::new(0), Some(Helpers { cores: cores.clone(), most: 0 }));
        let outputs = graph.run(&mut [input.clone()], &asking).expect("an answer");
        assert_eq!(outputs, std::slice::from_ref(&input));
        asking.0.into_inner()
    };
    // The first run makes its plan.
    asked();
    assert_eq!(asked(), 0, "nobody waits for its core");
    let _waits = cores.take_quick();
    let asked = asked();
    assert!(asked >= 90, "{asked} times in ninety products of 134 million each");
}

/// A graph, an input, and what it answers on one thread.
fn asked_alone() -> (Graph, Value<'static>, Vec<u8>) {
    let graph = Graph::load(&products(), EngineKind::Tract).expect("a graph");
    let data: Vec<u8> = (0..ROWS * SIDE).flat_map(|i| ((i % 13) as f32).to_le_bytes()).collect();
    let input = Value { datatype: Datatype::Fp32, shape: vec![ROWS, SIDE], data: data.into() };
    let alone = graph.run(&mut [input.clone()], &|| false).expect("an answer")[0].data.to_vec();
    (graph, input, alone)
}

#[test]
fn runs_that_want_the_same_cores_end() {
    let (graph, input, alone) = asked_alone();
    let cores = Cores::new(4);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let _caller = cores.wait_for_one();
                    let asked = Asked::new(&cores, 3);
                    let outputs = graph.run(&mut [input.clone()], &asked).expect("an answer");
                    assert!(*outputs[0].data == *alone, "another answer");
                }
            });
        }
    });
}

/// As on a server of two cores: who has a helper is often another.
#[test]
fn runs_that_come_and_go_end() {
    let (graph, input, alone) = asked_alone();
    let cores = Cores::new(2);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (cores, graph, input, alone) = (&cores, &graph, &input, &alone);
            scope.spawn(move || {
                for turn in 0..1000u64 {
                    {
                        let _caller = cores.wait_for_one();
                        let asked = Asked::new(cores, 1);
                        let outputs = graph.run(&mut [input.clone()], &asked).expect("an answer");
                        assert!(*outputs[0].data == **alone, "another answer");
                    }
                    if (turn + thread) % 3 == 0 {
                        std::thread::sleep(Duration::from_micros(300 + 37 * (turn % 11)));
                    }
                }
            });
        }
    });
}
