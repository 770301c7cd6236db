//! Compiled plans: a graph that is woken answers bit for bit as one that is loaded, also for sizes
//! that were not planned; what is not wholly such a plan is refused, and nothing panics.

#[path = "support/plans.rs"]
mod plans;

use std::borrow::Cow;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use rapidhash::v3::rapidhash_v3;
use tract_onnx::pb::{self, AttributeProto, NodeProto, TensorProto, tensor_proto::DataType};
use tract_onnx::pb::{tensor_shape_proto::Dimension, tensor_shape_proto::dimension};
use wisp_engine::tensor::{Datatype, Value};
use wisp_engine::{EngineKind, Failure, Graph, Inputs, generated};

use plans::{compiled, mapped};

const WIDTH: usize = 48;
const ROWS: usize = 40;

fn run(graph: &Graph, inputs: &Inputs) -> Result<Inputs, Failure> {
    graph.run(&mut inputs.clone(), &|| false)
}

fn none() -> Result<Bytes, String> {
    Err("no file".to_owned())
}

fn woken(onnx: &[u8]) -> Graph {
    let plan = compiled(onnx, "key").expect("operators that a plan can hold");
    let onnx = Bytes::copy_from_slice(onnx);
    Graph::wake(&mapped(&plan), "key", move || Ok(onnx.clone())).expect("a plan of that key")
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..NodeProto::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    // 7 is INTS.
    AttributeProto { name: name.into(), r#type: 7, ints: ints.to_vec(), ..Default::default() }
}

fn weights(name: &str, dims: &[usize]) -> TensorProto {
    let count = dims.iter().product::<usize>();
    let values = (0..count).map(|i| ((i * 7) % 23) as f32 / 64.0 - 0.15);
    TensorProto {
        name: name.into(),
        dims: dims.iter().map(|&size| size as i64).collect(),
        data_type: DataType::Float as i32,
        raw_data: values.flat_map(f32::to_le_bytes).collect(),
        ..TensorProto::default()
    }
}

fn named(name: &str, datatype: DataType, sizes: &[&str]) -> pb::ValueInfoProto {
    use dimension::Value::{DimParam, DimValue};
    let dim = sizes.iter().map(|size| Dimension {
        value: Some(size.parse().map_or_else(|_| DimParam((*size).to_owned()), DimValue)),
        ..Dimension::default()
    });
    let shape = Some(pb::TensorShapeProto { dim: dim.collect() });
    let tensor = pb::type_proto::Tensor { elem_type: datatype as i32, shape };
    let value = Some(pb::type_proto::Value::TensorType(tensor));
    let r#type = Some(pb::TypeProto { value, ..pb::TypeProto::default() });
    pb::ValueInfoProto { name: name.into(), r#type, ..pb::ValueInfoProto::default() }
}

fn file(graph: pb::GraphProto) -> Vec<u8> {
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    let graph = Some(pb::GraphProto { name: "graph".into(), ..graph });
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph, ..Default::default() }
        .encode_to_vec()
}

/// Rows of a table that attend to each other where a mask says so: `[batch, length]` numbers in,
/// as many rows out.
fn attention([batch, length]: [&str; 2]) -> Vec<u8> {
    let scale = TensorProto { raw_data: 0.25f32.to_le_bytes().to_vec(), ..weights("scale", &[]) };
    file(pb::GraphProto {
        node: vec![
            node("Gather", &["table", "ids"], "x", vec![]),
            node("MatMul", &["x", "w"], "xw", vec![]),
            node("Add", &["xw", "b"], "q", vec![]),
            node("Transpose", &["x"], "k", vec![ints("perm", &[0, 2, 1])]),
            node("MatMul", &["q", "k"], "qk", vec![]),
            node("Mul", &["qk", "scale"], "scores", vec![]),
            node("Unsqueeze", &["mask", "one"], "wide", vec![]),
            node("Sub", &["scores", "wide"], "masked", vec![]),
            node("Softmax", &["masked"], "p", vec![]),
            node("MatMul", &["p", "x"], "px", vec![]),
            node("Add", &["px", "x"], "sum", vec![]),
            node("Div", &["sum", "b"], "y", vec![]),
        ],
        input: vec![
            named("ids", DataType::Int64, &[batch, length]),
            named("mask", DataType::Float, &[batch, length]),
        ],
        output: vec![named("y", DataType::Float, &[batch, length, "48"])],
        initializer: vec![
            weights("table", &[ROWS, WIDTH]),
            weights("w", &[WIDTH, WIDTH]),
            weights("b", &[WIDTH]),
            scale,
            TensorProto {
                name: "one".into(),
                dims: vec![1],
                data_type: DataType::Int64 as i32,
                int64_data: vec![1],
                ..TensorProto::default()
            },
        ],
        ..pb::GraphProto::default()
    })
}

fn ids_and_mask(ids: [usize; 2], mask: [usize; 2]) -> Inputs {
    let numbers = (0..ids[0] * ids[1]).map(|i| (i * 11 % ROWS) as i64 - (i % 2 * ROWS) as i64);
    let masked = (0..mask[0] * mask[1]).map(|i| if i % 5 == 3 { 1e4f32 } else { 0.0 });
    let value = |datatype, shape: [usize; 2], data: Vec<u8>| Value {
        datatype,
        shape: shape.to_vec(),
        data: Cow::Owned(data),
    };
    vec![
        value(Datatype::Int64, ids, numbers.flat_map(i64::to_le_bytes).collect()),
        value(Datatype::Fp32, mask, masked.flat_map(f32::to_le_bytes).collect()),
    ]
}

#[test]
fn one_plan_serves_all_sizes() {
    let onnx = attention(["batch", "length"]);
    let (loaded, woken) = (Graph::load(&onnx, EngineKind::Tract).expect("a graph"), woken(&onnx));
    assert_eq!(loaded.contract(), woken.contract());
    for sizes in [[1, 1], [1, 5], [3, 1], [2, 7], [4, 33], [1, 130]] {
        let inputs = ids_and_mask(sizes, sizes);
        let answer = run(&woken, &inputs).expect("an answer");
        assert_eq!(run(&loaded, &inputs).as_ref(), Ok(&answer), "{sizes:?}");
        let [batch, length] = sizes.map(|size| size.to_string());
        let fixed = Graph::load(&attention([&batch, &length]), EngineKind::Tract).expect("a graph");
        assert_eq!(run(&fixed, &inputs), Ok(answer), "{sizes:?} when they are known");
    }
}

#[test]
fn sizes_of_one_name_that_differ_are_planned_for_themselves() {
    let onnx = attention(["batch", "length"]);
    let (loaded, woken) = (Graph::load(&onnx, EngineKind::Tract).expect("a graph"), woken(&onnx));
    let inputs = ids_and_mask([3, 4], [1, 4]);
    let answer = run(&woken, &inputs).expect("an answer");
    assert_eq!(answer[0].shape, [3, 4, WIDTH]);
    assert_eq!(run(&loaded, &inputs), Ok(answer));
}

/// What depends on a size is computed anew for each, whatever one plan for all would make of it.
#[test]
fn what_depends_on_a_size_is_right_for_each() {
    let whole = |name: &str, dims: &[i64], numbers: &[i64]| TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Int64 as i32,
        int64_data: numbers.to_vec(),
        ..TensorProto::default()
    };
    let graph = |nodes: Vec<NodeProto>, initializer: Vec<TensorProto>| {
        file(pb::GraphProto {
            node: nodes,
            input: vec![named("x", DataType::Float, &["batch", "length"])],
            output: vec![named("y", DataType::Float, &["batch", "columns"])],
            initializer,
            ..pb::GraphProto::default()
        })
    };
    let asked = |op: &str| {
        let nodes = vec![
            node("Shape", &["x"], "shape", vec![]),
            node("Gather", &["shape", "at"], "length", vec![]),
            node(op, &["length", "three"], "is", vec![]),
            node("Add", &["x", "x"], "twice", vec![]),
            node("Where", &["is", "twice", "x"], "y", vec![]),
        ];
        graph(nodes, vec![whole("at", &[], &[1]), whole("three", &[], &[3])])
    };
    let sliced = |from: i64, to: i64| {
        let ends = [("from", from), ("to", to), ("axis", 1)];
        let ends = ends.map(|(name, number)| whole(name, &[1], &[number]));
        graph(vec![node("Slice", &["x", "from", "to", "axis"], "y", vec![])], ends.to_vec())
    };
    let twice_if = |is: bool, row: Vec<f32>| -> Vec<f32> {
        row.into_iter().map(|x| if is { 2.0 * x } else { x }).collect()
    };
    for length in [1usize, 2, 3, 4, 8] {
        let row: Vec<f32> = (0..length).map(|i| i as f32 + 1.0).collect();
        let last = |count: usize| row[length.saturating_sub(count)..].to_vec();
        let cases = [
            (asked("Equal"), twice_if(length == 3, row.clone())),
            (asked("Less"), twice_if(length < 3, row.clone())),
            (asked("Greater"), twice_if(length > 3, row.clone())),
            (sliced(0, 5), row[..length.min(5)].to_vec()),
            (sliced(-5, i64::MAX), last(5)),
            (sliced(0, 1_000_000), row.clone()),
        ];
        for (at, (onnx, expected)) in cases.into_iter().enumerate() {
            let data = row.iter().flat_map(|x| x.to_le_bytes()).collect();
            let input = Value { datatype: Datatype::Fp32, shape: vec![1, length], data };
            let loaded = Graph::load(&onnx, EngineKind::Tract).expect("a graph");
            let woken = compiled(&onnx, "key").map(|_| woken(&onnx));
            for graph in [Some(loaded), woken].into_iter().flatten() {
                let answer = run(&graph, &vec![input.clone()]).expect("an answer");
                let numbers = answer[0].data.chunks_exact(4);
                let numbers = numbers.map(|x| f32::from_le_bytes(x.try_into().expect("four")));
                let numbers: Vec<f32> = numbers.collect();
                assert_eq!(numbers, expected, "case {at}, length {length}");
            }
        }
    }
}

#[test]
fn rows_that_a_table_lacks_are_an_error() {
    let woken = woken(&attention(["batch", "length"]));
    for id in [ROWS as i64, -(ROWS as i64) - 1, i64::MAX, i64::MIN] {
        let mut inputs = ids_and_mask([1, 1], [1, 1]);
        inputs[0].data = Cow::Owned(id.to_le_bytes().to_vec());
        let failed = run(&woken, &inputs).expect_err("no such row");
        assert!(
            matches!(&failed, Failure::Failed(reason) if reason.contains("no row")),
            "{failed:?}"
        );
    }
}

#[test]
fn models_answer_the_same() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let files =
        ["digits/digits.onnx", "imagenet/efficientnet-lite0.onnx", "minilm/all-minilm-l6-v2.onnx"];
    for file in files {
        // What is not fetched is not tried.
        let Ok(onnx) = std::fs::read(models.join(file)) else { continue };
        let loaded = Graph::load(&onnx, EngineKind::Tract).expect("a graph");
        let woken = woken(&onnx);
        assert_eq!(loaded.contract(), woken.contract(), "{file}");
        let mut inputs = generated(loaded.contract()).expect("inputs of some size");
        assert_eq!(run(&loaded, &inputs), run(&woken, &inputs), "{file}");
        if loaded.contract().inputs.iter().all(|spec| spec.shape[0] < 0) {
            for value in &mut inputs {
                value.shape[0] = 2;
                value.data = Cow::Owned(value.data.repeat(2));
            }
            assert_eq!(run(&loaded, &inputs), run(&woken, &inputs), "{file}, a batch of two");
        }
    }
}

#[test]
fn a_plan_cut_short_or_changed_is_refused() {
    let onnx = attention(["batch", "length"]);
    let plan = compiled(&onnx, "key").expect("a plan");
    let wake = |file: &[u8], key: &str| Graph::wake(&mapped(file), key, none);
    assert!(wake(&plan, "key").is_ok());
    assert!(wake(&plan, "another").is_err_and(|error| error.to_string().contains("another")));
    for length in (0..plan.len()).step_by(97).chain([plan.len() - 1]) {
        assert!(wake(&plan[..length], "key").is_err(), "{length} bytes of {}", plan.len());
    }
    assert!(wake(&[&plan[..], &[0]].concat(), "key").is_err(), "a byte more");
    let small = 32 + u64::from_le_bytes(plan[8..16].try_into().expect("eight bytes")) as usize;
    for at in (0..small).step_by(13).chain(0..32) {
        let mut changed = plan.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(wake(&changed, "key").is_err(), "byte {at} of {small}");
    }
    let large = small.next_multiple_of(4096);
    assert!(large < plan.len(), "weights");
    let mut changed = plan.clone();
    changed[large] ^= 1;
    assert!(wake(&changed, "key").is_err(), "the first weight");
}

/// The digest tells of damage, not of malice: what has it right is still taken apart with care.
#[test]
fn a_plan_of_nonsense_does_no_harm() {
    let onnx = Bytes::from(attention(["batch", "length"]));
    let plan = compiled(&onnx, "key").expect("a plan");
    let file = move || Ok(onnx.clone());
    let small = u64::from_le_bytes(plan[8..16].try_into().expect("eight bytes")) as usize;
    for at in (0..small).step_by(3) {
        let mut changed = plan.clone();
        changed[32 + at] = changed[32 + at].wrapping_add(1 + (at % 7) as u8);
        let digest = rapidhash_v3(&changed[32..32 + small]);
        changed[16..24].copy_from_slice(&digest.to_le_bytes());
        // It may be refused, fail, or answer nonsense.
        if let Ok(graph) = Graph::wake(&mapped(&changed), "key", file.clone()) {
            let _ = run(&graph, &ids_and_mask([2, 3], [2, 3]));
        }
    }
}

#[test]
fn a_plan_of_another_version_is_refused() {
    let mut plan = compiled(&attention(["batch", "length"]), "key").expect("a plan");
    let small = u64::from_le_bytes(plan[8..16].try_into().expect("eight bytes")) as usize;
    // The version is what stands first, after its length.
    plan[40] = b'x';
    let digest = rapidhash_v3(&plan[32..32 + small]);
    plan[16..24].copy_from_slice(&digest.to_le_bytes());
    let refused = Graph::wake(&mapped(&plan), "key", none).expect_err("another version");
    assert!(refused.to_string().contains("another version"), "{refused}");
}

#[test]
fn operators_that_cannot_be_held_make_no_plan() {
    let onnx = file(pb::GraphProto {
        node: vec![node("CumSum", &["x", "axis"], "y", vec![])],
        input: vec![named("x", DataType::Float, &["2", "3"])],
        output: vec![named("y", DataType::Float, &["2", "3"])],
        initializer: vec![TensorProto {
            name: "axis".into(),
            data_type: DataType::Int64 as i32,
            int64_data: vec![1],
            ..TensorProto::default()
        }],
        ..pb::GraphProto::default()
    });
    assert!(Graph::load(&onnx, EngineKind::Tract).is_ok());
    assert_eq!(compiled(&onnx, "key"), None);
}
