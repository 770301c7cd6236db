//! Files as a client may send them: weights written in all the ways there are, and files cut
//! short or changed. A graph gives the same answer or is refused; nothing panics.

#[path = "support/encode.rs"]
mod encode;

use std::borrow::Cow;
use std::path::Path;

use half::bf16;
use prost::Message;
use tract_onnx::pb::{self, TensorProto, tensor_proto::DataType};
use wisp_engine::tensor::{Datatype, Value};
use wisp_engine::{EngineKind, Graph, OnnxRuntime};

const SIDE: usize = 48;

fn values(seed: usize) -> Vec<f32> {
    (0..SIDE * SIDE).map(|i| ((i * 7 + seed) % 23) as f32 - 11.0).collect()
}

/// 48 × 48 floats: more bytes than are read with the rest of a file.
fn weights(name: &str, seed: usize) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![SIDE as i64; 2],
        data_type: DataType::Float as i32,
        raw_data: values(seed).iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

/// `y = (x · a) + b`
fn model(initializer: Vec<TensorProto>) -> pb::ModelProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value::DimValue};
    let named = |name: &str| {
        let dim = Dimension { value: Some(DimValue(SIDE as i64)), ..Dimension::default() };
        let shape = Some(pb::TensorShapeProto { dim: vec![dim; 2] });
        let tensor = pb::type_proto::Tensor { elem_type: DataType::Float as i32, shape };
        let value = Some(pb::type_proto::Value::TensorType(tensor));
        let r#type = Some(pb::TypeProto { value, ..pb::TypeProto::default() });
        pb::ValueInfoProto { name: name.into(), r#type, ..pb::ValueInfoProto::default() }
    };
    let node = |op: &str, inputs: [&str; 2], output: &str| pb::NodeProto {
        op_type: op.into(),
        input: inputs.map(String::from).into(),
        output: vec![output.into()],
        ..pb::NodeProto::default()
    };
    let graph = pb::GraphProto {
        node: vec![node("MatMul", ["x", "a"], "xa"), node("Add", ["xa", "b"], "y")],
        input: vec![named("x")],
        output: vec![named("y")],
        initializer,
        ..pb::GraphProto::default()
    };
    pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..pb::ModelProto::default()
    }
}

fn answer(onnx: &[u8]) -> Result<Vec<f32>, String> {
    answer_of(onnx, EngineKind::Tract)
}

fn answer_of(onnx: &[u8], engine: EngineKind) -> Result<Vec<f32>, String> {
    let graph = Graph::load(onnx, engine).map_err(|error| error.to_string())?;
    let data = values(5).iter().flat_map(|value| value.to_le_bytes()).collect();
    let x = Value { datatype: Datatype::Fp32, shape: vec![SIDE; 2], data: Cow::Owned(data) };
    let outputs = graph.run(&mut [x], &|| false).map_err(|failure| format!("{failure:?}"))?;
    let floats = outputs[0].data.chunks_exact(4);
    Ok(floats.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect())
}

fn expected(a: usize, b: usize) -> Vec<f32> {
    let (x, a, b) = (values(5), values(a), values(b));
    let element = |at: usize| {
        let (row, column) = (at / SIDE, at % SIDE);
        b[at] + (0..SIDE).map(|k| x[row * SIDE + k] * a[k * SIDE + column]).sum::<f32>()
    };
    (0..SIDE * SIDE).map(element).collect()
}

#[test]
fn weights_are_found_however_they_are_written() {
    let whole = model(vec![weights("a", 1), weights("b", 2)]);
    assert_eq!(answer(&whole.encode_to_vec()), Ok(expected(1, 2)), "raw");

    let mut as_floats = whole.clone();
    let tensors = as_floats.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    for (tensor, seed) in tensors.zip([1, 2]) {
        tensor.raw_data.clear();
        tensor.float_data = values(seed);
    }
    assert_eq!(answer(&as_floats.encode_to_vec()), Ok(expected(1, 2)), "as floats");

    let tied = model(vec![weights("a", 3), weights("b", 3)]);
    assert_eq!(answer(&tied.encode_to_vec()), Ok(expected(3, 3)), "the same twice");

    // Two messages one after the other are one: their lists are joined, the last of a field wins.
    let mut first = model(vec![weights("a", 1)]).encode_to_vec();
    let rest = pb::GraphProto { initializer: vec![weights("b", 2)], ..pb::GraphProto::default() };
    let rest = pb::ModelProto { graph: Some(rest), ..pb::ModelProto::default() };
    first.extend(rest.encode_to_vec());
    assert_eq!(answer(&first), Ok(expected(1, 2)), "in two graphs");

    let listed = |mut model: pb::ModelProto| {
        let graph = model.graph.as_mut().expect("a graph");
        let like_x = graph.input[0].clone();
        graph.input.push(pb::ValueInfoProto { name: "a".into(), ..like_x });
        model
    };
    assert_eq!(answer(&listed(whole).encode_to_vec()), Ok(expected(1, 2)), "among the inputs");
}

/// Of as many bytes as are not read with the rest. Whole numbers of few digits are exact in BF16.
#[test]
fn weights_of_bf16_are_found() {
    let halves = |name: &str, seed| {
        let halves = values(seed).into_iter().map(bf16::from_f32);
        let raw_data = halves.flat_map(bf16::to_le_bytes).collect();
        let data_type = DataType::Bfloat16 as i32;
        TensorProto { data_type, raw_data, ..weights(name, seed) }
    };
    let cast = |from: &str, to: &str| pb::NodeProto {
        op_type: "Cast".into(),
        input: vec![from.into()],
        output: vec![to.into()],
        attribute: vec![pb::AttributeProto {
            name: "to".into(),
            r#type: pb::attribute_proto::AttributeType::Int as i32,
            i: DataType::Float as i64,
            ..pb::AttributeProto::default()
        }],
        ..pb::NodeProto::default()
    };
    let mut model = model(vec![halves("half a", 1), halves("half b", 2)]);
    let graph = model.graph.as_mut().expect("a graph");
    graph.node.splice(0..0, [cast("half a", "a"), cast("half b", "b")]);
    let onnx = model.encode_to_vec();
    assert_eq!(answer(&onnx), Ok(expected(1, 2)));
    assert!(answer_of(&onnx, EngineKind::Rten).is_err());
    if has_onnxruntime() {
        assert_eq!(answer_of(&onnx, EngineKind::OnnxRuntime), Ok(expected(1, 2)));
    }
}

fn has_onnxruntime() -> bool {
    let Some(path) = std::env::var_os("WISP_TEST_ONNXRUNTIME") else { return false };
    // SAFETY: whoever set it says that it is ONNX Runtime.
    let opened = unsafe { OnnxRuntime::open(Path::new(&path)) };
    opened.expect("WISP_TEST_ONNXRUNTIME: a library that opens");
    true
}

/// Of a file with large weights, which is written anew for ONNX Runtime.
#[test]
fn inputs_left_out_at_the_end_are_none() {
    let mut model = model(vec![weights("a", 1), weights("b", 2)]);
    let nodes = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
    nodes.for_each(|node| node.input.push(String::new()));
    let onnx = model.encode_to_vec();
    assert_eq!(answer(&onnx), Ok(expected(1, 2)));
    if has_onnxruntime() {
        assert_eq!(answer_of(&onnx, EngineKind::OnnxRuntime), Ok(expected(1, 2)));
    }
}

/// What is not written anew for an engine is refused by it, not read without the functions.
#[test]
fn functions_are_served_with_large_weights() {
    let mut calling = model(vec![weights("a", 1), weights("b", 2)]);
    let graph = calling.graph.as_mut().expect("a graph");
    let body = std::mem::take(&mut graph.node);
    graph.node = vec![pb::NodeProto {
        op_type: "Linear".into(),
        domain: "own".into(),
        input: ["x", "a", "b"].map(String::from).into(),
        output: vec!["y".into()],
        ..pb::NodeProto::default()
    }];
    calling.functions = vec![pb::FunctionProto {
        name: Some("Linear".into()),
        domain: Some("own".into()),
        input: ["x", "a", "b"].map(String::from).into(),
        output: vec!["y".into()],
        node: body,
        opset_import: calling.opset_import.clone(),
        ..pb::FunctionProto::default()
    }];
    let onnx = calling.encode_to_vec();
    assert_eq!(answer(&onnx), Ok(expected(1, 2)));
    if has_onnxruntime() {
        assert_eq!(answer_of(&onnx, EngineKind::OnnxRuntime), Ok(expected(1, 2)));
    }
    let refused = answer_of(&onnx, EngineKind::Rten);
    assert_eq!(refused, Err("rten takes no functions of a file's own".to_owned()));
}

#[test]
fn functions_that_are_not_called_change_nothing() {
    let mut model = model(vec![weights("a", 1), weights("b", 2)]);
    let mut opset_import = model.opset_import.clone();
    opset_import.iter_mut().for_each(|opset| opset.version -= 1);
    model.functions = vec![pb::FunctionProto {
        name: Some("Older".into()),
        domain: Some("own".into()),
        opset_import,
        ..pb::FunctionProto::default()
    }];
    let onnx = encode::encode(&model);
    for engine in [EngineKind::Tract, EngineKind::Rten] {
        assert_eq!(answer_of(&onnx, engine), Ok(expected(1, 2)), "{engine}");
    }
}

#[test]
fn weights_that_are_not_their_shape_are_refused() {
    for change in [
        |tensor: &mut TensorProto| tensor.raw_data.truncate(SIDE * SIDE * 4 - 1),
        |tensor: &mut TensorProto| tensor.dims = vec![i64::MAX, i64::MAX],
        |tensor: &mut TensorProto| tensor.dims = vec![-1, -1],
        |tensor: &mut TensorProto| tensor.data_type = 99,
        |tensor: &mut TensorProto| tensor.data_type = DataType::Bfloat16 as i32,
        |tensor: &mut TensorProto| tensor.data_type = DataType::Float8e4m3fn as i32,
        |tensor: &mut TensorProto| tensor.data_type = DataType::Int4 as i32,
    ] {
        let mut changed = weights("a", 1);
        change(&mut changed);
        let refused = answer(&model(vec![changed, weights("b", 2)]).encode_to_vec());
        let reason = refused.expect_err("weights of another size");
        assert!(!reason.contains("left in the file"), "{reason}");
    }
}

#[test]
fn a_file_cut_short_or_changed_is_refused_or_read() {
    let whole = model(vec![weights("a", 1), weights("b", 2)]).encode_to_vec();
    let step = 101;
    for length in (0..whole.len()).step_by(step).chain(whole.len() - 64..whole.len()) {
        match answer(&whole[..length]) {
            Err(reason) => assert!(!reason.contains("panicked"), "cut at {length}: {reason}"),
            // What comes after the graph may be left out.
            Ok(answer) => assert!(length > SIDE * SIDE * 8 && answer == expected(1, 2)),
        }
    }
    for at in (0..200).chain((200..whole.len()).step_by(step * 7)) {
        for bit in [0x01, 0x80] {
            let mut changed = whole.clone();
            changed[at] ^= bit;
            // Another answer is right where another weight is: only that there is one is said here.
            if let Err(reason) = answer(&changed) {
                assert!(!reason.contains("left in the file"), "changed at {at}: {reason}");
            }
        }
    }
}
