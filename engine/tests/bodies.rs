//! Runs that are over end within the loops and branches of their graph, too.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use tract_onnx::pb::{self, AttributeProto, GraphProto, NodeProto, tensor_proto::DataType};
use tract_onnx::pb::{tensor_shape_proto::Dimension, tensor_shape_proto::dimension};
use wisp_engine::tensor::{Datatype, Value};
use wisp_engine::{EngineKind, Failure, Graph};

fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let (input, output) = (names(inputs), names(outputs));
    NodeProto { op_type: op.into(), input, output, attribute, ..NodeProto::default() }
}

fn graph(name: &str, graph: GraphProto) -> AttributeProto {
    // 5 is GRAPH.
    let g = Some(GraphProto { name: name.into(), ..graph });
    AttributeProto { name: name.into(), r#type: 5, g, ..AttributeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    // 2 is INT.
    AttributeProto { name: name.into(), r#type: 2, i, ..AttributeProto::default() }
}

fn named(name: &str, sizes: &[i64]) -> pb::ValueInfoProto {
    let dim = sizes.iter().map(|&size| Dimension {
        value: Some(dimension::Value::DimValue(size)),
        ..Dimension::default()
    });
    let shape = Some(pb::TensorShapeProto { dim: dim.collect() });
    let tensor = pb::type_proto::Tensor { elem_type: DataType::Float as i32, shape };
    let value = Some(pb::type_proto::Value::TensorType(tensor));
    let r#type = Some(pb::TypeProto { value, ..pb::TypeProto::default() });
    pb::ValueInfoProto { name: name.into(), r#type, ..pb::ValueInfoProto::default() }
}

fn file(graph: GraphProto) -> Vec<u8> {
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    let graph = Some(GraphProto { name: "graph".into(), ..graph });
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph, ..Default::default() }
        .encode_to_vec()
}

fn floats(shape: &[usize], values: &[f32]) -> Value<'static> {
    let data = Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    Value { datatype: Datatype::Fp32, shape: shape.to_vec(), data }
}

/// Over at the question after so many.
fn patience(questions: usize) -> impl Fn() -> bool + Sync {
    let asked = AtomicUsize::new(0);
    move || asked.fetch_add(1, Ordering::Relaxed) >= questions
}

/// `nodes` sines one after the other, of `turns` rows of that width, each added to the last answer.
fn scan(turns: i64, nodes: usize, width: i64) -> Vec<u8> {
    let mut steps = vec![node("Add", &["state", "row"], &["sine0"], vec![])];
    for index in 0..nodes {
        let names = [format!("sine{index}"), format!("sine{}", index + 1)];
        steps.push(node("Sin", &[&names[0]], &[&names[1]], vec![]));
    }
    let last = format!("sine{nodes}");
    steps.push(node("Identity", &[&last], &["next"], vec![]));
    let body = GraphProto {
        node: steps,
        input: vec![named("state", &[width]), named("row", &[width])],
        output: vec![named("next", &[width])],
        ..GraphProto::default()
    };
    let attributes = vec![graph("body", body), int("num_scan_inputs", 1)];
    file(GraphProto {
        node: vec![node("Scan", &["x", "rows"], &["y"], attributes)],
        input: vec![named("x", &[width]), named("rows", &[turns, width])],
        output: vec![named("y", &[width])],
        ..GraphProto::default()
    })
}

#[test]
fn loops_end_between_turns_and_operators() {
    // Long enough for a caller to look several times whether they are over.
    for (turns, nodes, width) in [(200_000, 1, 4), (2, 200, 100_000)] {
        let onnx = scan(turns, nodes, width);
        let width = width as usize;
        let graph = Graph::load(&onnx, EngineKind::Tract).expect("a graph");
        let rows = floats(&[turns as usize, width], &vec![0.5; turns as usize * width]);
        let run = |watch: &(dyn Fn() -> bool + Sync)| {
            graph.run(&mut [floats(&[width], &vec![0.25; width]), rows.clone()], &|| watch())
        };
        let answer = run(&|| false).expect("an answer");
        assert_eq!(run(&patience(3)), Err(Failure::Stopped), "{turns} turns of {nodes}");
        assert_eq!(run(&|| false), Ok(answer), "goes on");
    }
}

/// Thirty-two heads of 4,096 queries that each see eight keys: no output holds all the scores, so
/// it starts, and ends between queries.
#[test]
fn attention_of_many_rows_starts_and_ends() {
    let attributes =
        [("q_num_heads", 32), ("kv_num_heads", 32), ("left_window_size", 7), ("is_causal", 1)];
    let attributes = attributes.map(|(name, number)| int(name, number)).into();
    let sizes = [1, 4096, 32];
    let onnx = file(GraphProto {
        node: vec![node("Attention", &["q", "k", "v"], &["y"], attributes)],
        input: ["q", "k", "v"].map(|name| named(name, &sizes)).into(),
        output: vec![named("y", &sizes)],
        ..GraphProto::default()
    });
    let graph = Graph::load(&onnx, EngineKind::Tract).expect("a graph");
    let [q, k, v] = [0.1, 0.2, 0.3].map(|x| floats(&[1, 4096, 32], &[x; 4096 * 32]));
    let is_over = patience(100);
    assert_eq!(graph.run(&mut [q, k, v], &is_over), Err(Failure::Stopped));
}

/// The work of `matmul_slow`, in the branch of an If that is taken where x is not negative.
fn branch() -> Vec<u8> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let slow = fs::read(models.join("matmul_slow.onnx")).expect("a fixture");
    let slow = pb::ModelProto::decode(&slow[..]).expect("a model").graph.expect("a graph");
    let initializer = slow.initializer.clone();
    let then = GraphProto { node: slow.node, output: slow.output, ..GraphProto::default() };
    let otherwise = GraphProto {
        node: vec![node("Neg", &["x"], &["negated"], vec![])],
        output: vec![named("negated", &[1])],
        ..GraphProto::default()
    };
    let attributes = vec![graph("then_branch", then), graph("else_branch", otherwise)];
    file(GraphProto {
        node: vec![
            node("Abs", &["x"], &["size"], vec![]),
            node("Equal", &["x", "size"], &["is"], vec![]),
            node("Squeeze", &["is"], &["condition"], vec![]),
            node("If", &["condition"], &["z"], attributes),
        ],
        input: vec![named("x", &[1])],
        output: vec![named("z", &[1])],
        initializer,
        ..GraphProto::default()
    })
}

/// A branch may take any memory, so it runs on a thread of its own, which nobody waits for once
/// the run is over; as many as there are cores that go on by themselves, and the graph is refused.
#[test]
fn branches_end_between_operators() {
    let graph = Graph::load(&branch(), EngineKind::Tract).expect("a graph");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..cores + 2 {
        let since = Instant::now();
        let is_over = || since.elapsed() > Duration::from_millis(50);
        let stopped = graph.run(&mut [floats(&[1], &[3.0])], &is_over);
        assert_eq!(stopped, Err(Failure::Stopped));
    }
    for x in [3.0, -3.0] {
        let answer = graph.run(&mut [floats(&[1], &[x])], &|| false);
        assert_eq!(answer, Ok(vec![floats(&[1], &[3.0])]), "{x}");
    }
}
