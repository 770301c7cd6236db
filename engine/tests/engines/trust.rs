//! What rten is not given, as it answers it wrongly.

use std::collections::HashSet;
use std::iter;

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    tensor_proto::DataType,
};
use wisp_engine::{EngineKind, Graph};

use super::identity;

/// The numbers of `AttributeProto.AttributeType`.
const INT: i32 = 2;
const STRING: i32 = 3;
const TENSOR: i32 = 4;
const GRAPH: i32 = 5;
const FLOATS: i32 = 6;
const INTS: i32 = 7;

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind, ..AttributeProto::default() }
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[AttributeProto]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.into()],
        attribute: attributes.to_vec(),
        ..NodeProto::default()
    }
}

fn tensor(name: &str, data_type: DataType, dims: &[i64], raw_data: Vec<u8>) -> TensorProto {
    let data_type = data_type as i32;
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type,
        raw_data,
        ..Default::default()
    }
}

fn longs(name: &str, dims: &[i64], number: i64) -> TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    let numbers = iter::repeat_n(number.to_le_bytes(), count).flatten();
    tensor(name, DataType::Int64, dims, numbers.collect())
}

/// Whether rten is trusted with these nodes, the last of which makes `y`; what they take and nothing
/// makes are inputs, as `x` is, of [1, 1, 2, 2]. What else it lacks is not asked.
fn is_trusted_with(nodes: Vec<NodeProto>, weights: Vec<TensorProto>) -> bool {
    let mut model = ModelProto::decode(&identity(1, &[1, 1, 2, 2])[..]).expect("a file");
    let graph = model.graph.as_mut().expect("a graph");
    let mut known: HashSet<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
    known.extend(["", "x"]);
    known.extend(nodes.iter().flat_map(|node| &node.output).map(String::as_str));
    for name in nodes.iter().flat_map(|node| &node.input) {
        if known.insert(name) {
            let input = ValueInfoProto { name: name.clone(), ..graph.input[0].clone() };
            graph.input.push(input);
        }
    }
    (graph.node, graph.initializer) = (nodes, weights);
    let loaded = Graph::load(&model.encode_to_vec(), EngineKind::Rten);
    !loaded.is_err_and(|error| error.to_string().starts_with("rten is not trusted with"))
}

fn is_trusted(op: &str, inputs: &[&str], weights: Vec<TensorProto>) -> bool {
    is_trusted_with(vec![node(op, inputs, "y", &[])], weights)
}

#[test]
fn operators_that_rten_answers_wrongly() {
    for op in ["NonMaxSuppression", "ScatterElements", "Sign", "Softplus", "ArgMax"] {
        assert!(!is_trusted(op, &["x", "x", "x"], vec![]), "{op}");
    }
    let turns = |state: &str| is_trusted("Loop", &["", "", state], vec![longs("w", &[], 1)]);
    assert!(turns("x") && !turns("w"));
    let sized = vec![node("Shape", &["x"], "s", &[]), node("Loop", &["", "", "s"], "y", &[])];
    assert!(!is_trusted_with(sized, vec![]));
    let lengths = ["x", "w", "w", "", "lengths"];
    assert!(is_trusted("LSTM", &lengths[..3], vec![]));
    assert!(!is_trusted("LSTM", &lengths, vec![]));
    let resized = |mode: &str| {
        let mode = AttributeProto { s: mode.into(), ..attribute("mode", STRING) };
        let scales = [1f32; 4].iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = tensor("s", DataType::Float, &[4], scales);
        is_trusted_with(vec![node("Resize", &["x", "", "s"], "y", &[mode])], vec![scales])
    };
    assert!(resized("linear") && !resized("cubic"));
    let inserted =
        |place: i64| is_trusted("SequenceInsert", &["x", "x", "p"], vec![longs("p", &[], place)]);
    assert!(inserted(0) && !inserted(-1));
}

#[test]
fn convolutions_of_padded_integers() {
    let convolved = |shape: [i64; 4], groups: i64, padding: AttributeProto| {
        let groups = AttributeProto { i: groups, ..attribute("group", INT) };
        let weights = vec![1; shape.iter().product::<i64>() as usize];
        let weights = tensor("w", DataType::Int8, &shape, weights);
        let node = node("ConvInteger", &["x", "w"], "y", &[groups, padding]);
        is_trusted_with(vec![node], vec![weights])
    };
    let pads = |pad: i64| AttributeProto { ints: vec![0, 0, 0, pad], ..attribute("pads", INTS) };
    let auto = |how: &str| AttributeProto { s: how.into(), ..attribute("auto_pad", STRING) };
    // The longest is left in the file.
    for count in [1, 512] {
        assert!(
            convolved([count, 2, 3, 3], 1, pads(0)) && !convolved([count, 2, 3, 3], 1, pads(1))
        );
        assert!(convolved([count, 1, 3, 3], count, pads(1)));
        assert!(!convolved([2 * count, 1, 3, 3], count, pads(1)));
        assert!(!convolved([count, 2, 3, 3], count, pads(1)));
    }
    assert!(convolved([1, 2, 3, 3], 1, auto("VALID")));
    assert!(!convolved([1, 2, 3, 3], 1, auto("SAME_UPPER")));
    let made = node("Identity", &["x"], "made", &[]);
    let padded = node("ConvInteger", &["x", "made"], "y", &[pads(1)]);
    assert!(!is_trusted_with(vec![made, padded], vec![]));
}

#[test]
fn products_with_a_vector() {
    // The longest is left in the file.
    for (dims, expected) in [(&[2, 1][..], true), (&[2], false), (&[1024], false)] {
        let bytes = vec![0; 4 * dims.iter().product::<i64>() as usize];
        let weights = tensor("w", DataType::Float, dims, bytes);
        assert_eq!(is_trusted("MatMul", &["x", "w"], vec![weights]), expected, "{dims:?}");
    }
    let made = AttributeProto { floats: vec![1.0; 2], ..attribute("value_floats", FLOATS) };
    let nodes = vec![node("Constant", &[], "w", &[made]), node("MatMul", &["x", "w"], "y", &[])];
    assert!(!is_trusted_with(nodes, vec![]));
}

#[test]
fn numbers_of_more_than_32_bits() {
    for count in [1, 512] {
        let added = |number| is_trusted("Add", &["x", "w"], vec![longs("w", &[count], number)]);
        assert!(added(1 << 30) && !added(1 << 31), "{count}");
    }
    let sliced = |names: &[&str]| is_trusted("Slice", names, vec![longs("w", &[1], 1 << 40)]);
    assert!(sliced(&["x", "w", "w"]));
    assert!(!sliced(&["w", "x", "x"]) && !sliced(&["x", "x", "x", "w"]));
    let made = |number: i64| AttributeProto { i: number, ..attribute("value_int", INT) };
    let constant = |number, output: &str| node("Constant", &[], output, &[made(number)]);
    let added = |number| {
        let nodes = vec![constant(number, "w"), node("Add", &["x", "w"], "y", &[])];
        is_trusted_with(nodes, vec![])
    };
    assert!(added(1 << 30) && !added(1 << 40));
    assert!(!is_trusted_with(vec![constant(1 << 40, "y")], vec![]));
    let filled = |number| {
        let value =
            AttributeProto { t: Some(longs("", &[1], number)), ..attribute("value", TENSOR) };
        let node = node("ConstantOfShape", &["s"], "y", &[value]);
        is_trusted_with(vec![node], vec![longs("s", &[1], 2)])
    };
    assert!(filled(1 << 30) && !filled(1 << 40));
    // What is around a branch is seen in it; what is in another one is not.
    let branch = |name: &str, number, takes: &str| {
        let graph = GraphProto {
            node: vec![constant(number, "c"), node("Add", &["x", takes], "b", &[])],
            ..GraphProto::default()
        };
        AttributeProto { g: Some(graph), ..attribute(name, GRAPH) }
    };
    let branches = |large_takes: &str, small_takes: &str| {
        let both =
            [branch("then_branch", 1 << 40, large_takes), branch("else_branch", 1, small_takes)];
        is_trusted_with(vec![node("If", &["x"], "y", &both)], vec![longs("outer", &[], 1 << 40)])
    };
    assert!(branches("x", "c") && !branches("c", "x") && !branches("x", "outer"));
}

#[test]
fn weights_of_int8_with_a_zero_point() {
    let product = |kind: DataType, zero: u8, inputs: &[&str]| {
        // Of as many bytes as stay in the file, and of fewer.
        let of = |side: i64| {
            let weights = tensor("w", kind, &[side, side], vec![1; (side * side) as usize]);
            is_trusted("MatMulInteger", inputs, vec![weights, tensor("z", kind, &[], vec![zero])])
        };
        assert_eq!(of(2), of(64), "{inputs:?}");
        of(2)
    };
    let given = ["x", "w", "", "z"];
    assert!(product(DataType::Int8, 0, &given) && !product(DataType::Int8, 3, &given));
    assert!(product(DataType::Uint8, 3, &given));
    // Of weights that a node makes nothing is known: rten may find them constant.
    assert!(product(DataType::Int8, 3, &["x", "made"]));
    assert!(product(DataType::Int8, 0, &["x", "made", "", "z"]));
    assert!(!product(DataType::Int8, 3, &["x", "made", "", "z"]));
    assert!(!product(DataType::Int8, 0, &["x", "w", "", "made"]));
}
