//! Graphs that nobody exports, and what they are up to.

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    tensor_proto::DataLocation,
};

use crate::build::{
    BF16, BOOL, FLOAT, FP16, INT4, INT64, STRING, body, file, graph, int, ints, longs, model, node,
    raw, singles, tensor, value,
};
use crate::encode::encode;
use crate::loops;
use crate::weights;

pub type Named = (String, Vec<u8>);

pub fn cases() -> Vec<Named> {
    let all = [weights::cases(), structure(), sizes(), depths(), loops::endless("endless")];
    all.into_iter().flatten().collect()
}

/// And the reason they must be refused with, by each engine.
pub fn refused() -> Vec<(String, Vec<u8>, &'static str)> {
    let reason = "the weights of `w` are in another file";
    let places = ["w.bin", "../w.bin", "/etc/passwd", "", "/dev/zero"];
    let mut cases: Vec<_> = places
        .into_iter()
        .flat_map(|place| {
            [(FLOAT, true), (FLOAT, false), (BF16, true), (INT4, true)].map(
                |(element_type, says_so)| {
                    (place.to_owned(), weights_in(place, element_type, says_so), reason)
                },
            )
        })
        .collect();
    let nothing = model(body(&[value("x", FLOAT, &[1])], &[], &[], vec![]));
    cases.push(("no outputs".into(), nothing.encode_to_vec(), "no outputs"));
    let added = node("Unsqueeze", &["x"], &["y"], &[ints("axes", &vec![0; 1 << 20])]);
    cases.push(("a million new axes".into(), file(&[1], &[], vec![added]), "is out of bounds"));
    let add = || node("Add", &["x", "w"], &["y"], &[]);
    cases.push((
        "an initializer that is not there".into(),
        file(&[1], &[], vec![add()]),
        "the Add node `` takes `w`, which nothing makes",
    ));
    let branch =
        body(&[], &[value("b", FLOAT, &[1])], &[], vec![node("Add", &["x", "v"], &["b"], &[])]);
    let branches = [graph("then_branch", branch.clone()), graph("else_branch", branch)];
    let chosen = vec![node("IsNaN", &["x"], &["c"], &[]), node("If", &["c"], &["y"], &branches)];
    cases.push((
        "one that an inner graph takes".into(),
        file(&[1], &[], chosen),
        "the If node `` takes `v`, which nothing makes",
    ));
    cases.push((
        "an output that is not there".into(),
        file(&[1], &[], vec![node("Relu", &["x"], &["z"], &[])]),
        "nothing makes the output `y`",
    ));
    let texts = raw("w", STRING, &[1], &[0]);
    cases.push((
        "strings as raw bytes".into(),
        file(&[1], &[texts], vec![add()]),
        "the weights of `w` are strings, expected them in a list",
    ));
    let empty = ModelProto { ir_version: 8, ..ModelProto::default() };
    cases.push(("no graph".into(), empty.encode_to_vec(), "no graph"));
    cases
}

fn weights_in(place: &str, element_type: i32, says_so: bool) -> Vec<u8> {
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
    let weights = TensorProto {
        data_location: says_so.then_some(DataLocation::External as i32),
        external_data: vec![entry("location", place), entry("length", "4")],
        ..raw("w", element_type, &[1], &[])
    };
    file(&[1], &[weights], vec![node("Add", &["x", "w"], &["y"], &[])])
}

/// Nodes that do not add up to a graph.
fn structure() -> Vec<Named> {
    let relu = |from: &str, to: &str| node("Relu", &[from], &[to], &[]);
    let one = singles("w", &[1], &[1.0]);
    let far = |domain: &str| NodeProto { domain: domain.into(), ..relu("x", "y") };
    let opset = |versions: &[i64]| {
        let mut model = model(body(
            &[value("x", FLOAT, &[1])],
            &[value("y", FLOAT, &[1])],
            &[],
            vec![relu("x", "y")],
        ));
        let opset = model.opset_import[0].clone();
        let with = |&version: &i64| {
            let mut opset = opset.clone();
            opset.version = version;
            opset
        };
        model.opset_import = versions.iter().map(with).collect();
        model.encode_to_vec()
    };
    let named = "n".repeat(8 << 20);
    let normalised = |operator: &str, axis: i64| {
        let node = node(operator, &["x", "w"], &["y"], &[int("axis", axis)]);
        file(&[1], std::slice::from_ref(&one), vec![node])
    };
    let scalars = |operator: &str| {
        let node = node(operator, &["x", "x"], &["y"], &[]);
        model(body(&[value("x", FLOAT, &[])], &[value("y", FLOAT, &[])], &[], vec![node]))
            .encode_to_vec()
    };
    let none = singles("w", &[0], &[]);
    let empty_exponent = file(&[1], &[none], vec![node("Pow", &["x", "w"], &["y"], &[])]);
    let cases = [
        ("its own input", file(&[1], &[], vec![relu("y", "y")])),
        ("its own second input", file(&[1], &[], vec![node("Add", &["x", "y"], &["y"], &[])])),
        (
            "two in a circle",
            file(
                &[1],
                &[],
                vec![relu("a", "b"), relu("b", "a"), node("Add", &["x", "a"], &["y"], &[])],
            ),
        ),
        (
            "two of one name",
            file(&[1], &[], vec![relu("x", "y"), node("Neg", &["x"], &["y"], &[])]),
        ),
        ("an output named as the input", file(&[1], &[], vec![relu("x", "x"), relu("x", "y")])),
        (
            "an output named as another's input",
            file(&[1], &[], vec![node("Split", &["x"], &["y", "x"], &[])]),
        ),
        (
            "weights named as the output",
            file(&[1], &[singles("y", &[1], &[1.0])], vec![relu("x", "y")]),
        ),
        (
            "weights twice",
            file(&[1], &[one.clone(), one.clone()], vec![node("Add", &["x", "w"], &["y"], &[])]),
        ),
        ("no nodes", file(&[1], &[], vec![])),
        ("no inputs to a node", file(&[1], &[], vec![node("Add", &[], &["y"], &[])])),
        ("empty names", file(&[1], &[], vec![node("Add", &["", ""], &["", "y"], &[])])),
        ("many inputs", file(&[1], &[], vec![node("Relu", &["x"; 1000], &["y"], &[])])),
        ("many outputs", file(&[1], &[], vec![node("Split", &["x"], &["y"; 1000], &[])])),
        ("an unknown operator", file(&[1], &[], vec![node("Nothing", &["x"], &["y"], &[])])),
        ("an operator without a name", file(&[1], &[], vec![node("", &["x"], &["y"], &[])])),
        ("an unknown domain", file(&[1], &[], vec![far("com.example")])),
        ("a domain of newlines", file(&[1], &[], vec![far("\n\r\0")])),
        ("a long name", file(&[1], &[], vec![relu("x", &named), relu(&named, "y")])),
        ("a long operator", file(&[1], &[], vec![node(&named, &["x"], &["y"], &[])])),
        (
            "a normalisation without channels",
            file(
                &[1],
                std::slice::from_ref(&one),
                vec![node("BatchNormalization", &["x", "w", "w", "w", "w"], &["y"], &[])],
            ),
        ),
        ("a normalisation of an axis before the first", normalised("LayerNormalization", -7)),
        ("a normalisation of an axis after the last", normalised("LayerNormalization", 7)),
        ("one by squares of an axis before the first", normalised("RMSNormalization", -7)),
        ("one by squares of an axis after the last", normalised("RMSNormalization", 7)),
        ("a gather of what has no axes", scalars("GatherND")),
        ("a transform of what has no axes", scalars("DFT")),
        ("a power of nothing", empty_exponent),
        ("no opset", opset(&[])),
        ("opset 0", opset(&[0])),
        ("opset -1", opset(&[-1])),
        ("opset of the far future", opset(&[i64::MAX])),
        ("opset of the far past", opset(&[i64::MIN])),
        ("two opsets", opset(&[1, 18])),
    ];
    cases.map(|(name, onnx)| (format!("structure: {name}"), onnx)).into()
}

/// A few bytes that ask for terabytes: as constants, and as an input says.
fn sizes() -> Vec<Named> {
    let huge = 1 << 40;
    let zero = singles("zero", &[1], &[0.0]);
    let fill =
        |shape: &str| node("ConstantOfShape", &[shape], &["y"], &[tensor("value", zero.clone())]);
    let mut cases = Vec::new();
    for size in [1 << 31, 1 << 33, huge, 1 << 60, i64::MAX, -1, i64::MIN] {
        let shape = longs("s", &[1], &[size]);
        let pads = longs("s", &[2], &[0, size]);
        let before = longs("s", &[2], &[size, 0]);
        let end = longs("end", &[], &[size]);
        let scale = singles("scale", &[4], &[1.0, 1.0, size as f32, 1.0]);
        let four = longs("four", &[4], &[1, 1, size, 1]);
        let counts = [longs("from", &[], &[0]), end, longs("by", &[], &[1])];
        let range = vec![
            node("Range", &["from", "end", "by"], &["r"], &[]),
            node("Cast", &["r"], &["y"], &[int("to", 1)]),
        ];
        let long_range = |nodes| file(&[1], &counts, nodes);
        let one = |name: &str, inits: &[TensorProto], node: NodeProto| {
            (format!("{name} {size}"), file(&[1], inits, vec![node]))
        };
        let picture = |name: &str, inits: &[TensorProto], node: NodeProto| {
            (format!("{name} {size}"), file(&[1, 1, 2, 2], inits, vec![node]))
        };
        cases.extend([
            one("ConstantOfShape", std::slice::from_ref(&shape), fill("s")),
            one("Expand", std::slice::from_ref(&shape), node("Expand", &["x", "s"], &["y"], &[])),
            one("Tile", std::slice::from_ref(&shape), node("Tile", &["x", "s"], &["y"], &[])),
            one("Pad", &[pads], node("Pad", &["x", "s"], &["y"], &[])),
            one("Pad before", &[before], node("Pad", &["x", "s"], &["y"], &[])),
            one("Reshape", std::slice::from_ref(&shape), node("Reshape", &["x", "s"], &["y"], &[])),
            (format!("Range {size}"), long_range(range)),
            picture("Resize by", &[scale], node("Resize", &["x", "", "scale"], &["y"], &[])),
            picture("Resize to", &[four], node("Resize", &["x", "", "", "four"], &["y"], &[])),
            picture(
                "Upsample",
                &[],
                node("DepthToSpace", &["x"], &["y"], &[int("blocksize", size)]),
            ),
            (
                format!("MatMul by an input of {size}"),
                file(
                    &[1, size],
                    &[singles("w", &[1, 1], &[1.0])],
                    vec![node("MatMul", &["w", "x"], &["y"], &[])],
                ),
            ),
            (format!("OneHot {size}"), one_hot(size)),
            (
                format!("EyeLike {size}"),
                file(&[1], &[], vec![node("EyeLike", &["x"], &["y"], &[int("k", size)])]),
            ),
            (
                format!("an input of {size}"),
                file(&[size], &[], vec![node("Relu", &["x"], &["y"], &[])]),
            ),
        ]);
    }
    // As few as no placeholder stands for, and so many that one does.
    for axes in [65, 1 << 20] {
        let shape = longs("s", &[axes as i64], &vec![1; axes]);
        for operator in ["Reshape", "Expand", "Tile", "Unsqueeze"] {
            let node = node(operator, &["x", "s"], &["y"], &[]);
            let onnx = file(&[1], std::slice::from_ref(&shape), vec![node]);
            cases.push((format!("{operator} of {axes} axes"), onnx));
        }
        let onnx = file(&[1], std::slice::from_ref(&shape), vec![fill("s")]);
        cases.push((format!("ConstantOfShape of {axes} axes"), onnx));
        let made = node("Constant", &[], &["s"], &[tensor("value", shape)]);
        let nodes = vec![made, node("Reshape", &["x", "s"], &["y"], &[])];
        cases.push((format!("Reshape of {axes} axes by a node"), file(&[1], &[], nodes)));
    }
    cases.push(("Range without end".into(), endless_range()));
    cases.push(("Range of FP16".into(), range_of_halves(FP16, 0x7bff, 1)));
    cases.push(("Range of BF16".into(), range_of_halves(BF16, 0x7f7f, 0x3f80)));
    cases.into_iter().map(|(name, onnx)| (format!("sizes: {name}"), onnx)).collect()
}

/// Sizes that no constant says.
pub fn computed() -> Vec<Named> {
    let mut cases = asked_for();
    cases.extend(loops::endless("grows"));
    cases.extend(loops::of_nothing());
    cases.push(("doubled forty times".into(), doubled(40)));
    cases.push(("squared by an outer product".into(), outer_products()));
    cases
}

fn one_hot(depth: i64) -> Vec<u8> {
    let inits = [longs("d", &[1], &[depth]), singles("v", &[2], &[0.0, 1.0])];
    let to = node("Cast", &["x"], &["i"], &[int("to", INT64.into())]);
    file(&[1], &inits, vec![to, node("OneHot", &["i", "d", "v"], &["y"], &[])])
}

fn endless_range() -> Vec<u8> {
    let inits = [("from", 0.0), ("end", 1.0), ("by", 0.0)];
    let inits = inits.map(|(name, number)| singles(name, &[], &[number]));
    file(&[1], &inits, vec![node("Range", &["from", "end", "by"], &["y"], &[])])
}

fn range_of_halves(element_type: i32, end: u16, by: u16) -> Vec<u8> {
    let inits = [("from", 0), ("end", end), ("by", by)];
    let inits = inits.map(|(name, bits)| raw(name, element_type, &[], &bits.to_le_bytes()));
    let range = node("Range", &["from", "end", "by"], &["r"], &[]);
    file(&[1], &inits, vec![range, node("Cast", &["r"], &["y"], &[int("to", FLOAT.into())])])
}

fn doubled(times: usize) -> Vec<u8> {
    let names: Vec<String> = (0..=times).map(|index| format!("v{index}")).collect();
    let mut nodes = vec![node("Relu", &["x"], &[&names[0]], &[])];
    for pair in names.windows(2) {
        nodes.push(node("Concat", &[&pair[0], &pair[0]], &[&pair[1]], &[int("axis", 0)]));
    }
    nodes.push(node("Relu", &[&names[times]], &["y"], &[]));
    file(&[1], &[], nodes)
}

fn outer_products() -> Vec<u8> {
    let [row, column] = [longs("row", &[2], &[1, -1]), longs("column", &[2], &[-1, 1])];
    let mut nodes = vec![node("Relu", &["x"], &["v0"], &[])];
    for step in 0..6 {
        let [from, a, b, to] =
            [format!("v{step}"), format!("a{step}"), format!("b{step}"), format!("v{}", step + 1)];
        nodes.push(node("Reshape", &[&from, "row"], &[&a], &[]));
        nodes.push(node("Reshape", &[&from, "column"], &[&b], &[]));
        nodes.push(node("Mul", &[&b, &a], &[&to], &[]));
    }
    nodes.push(node("Relu", &["v6"], &["y"], &[]));
    let (x, y) = (value("x", FLOAT, &[1024]), value("y", FLOAT, &[-1, -1]));
    encode(&model(body(&[x], &[y], &[row, column], nodes)))
}

/// Sizes that come as the input's values: `generated` gives 0 or 1, so they are multiplied.
fn asked_for() -> Vec<Named> {
    let inits = [longs("million", &[1], &[1 << 42]), longs("one", &[1], &[1])];
    let grown = [
        node("Add", &["s", "one"], &["more"], &[]),
        node("Mul", &["more", "million"], &["size"], &[]),
    ];
    let zero = singles("zero", &[1], &[0.0]);
    let last = [
        node("ConstantOfShape", &["size"], &["y"], &[tensor("value", zero)]),
        node("Expand", &["x", "size"], &["y"], &[]),
        node("Tile", &["x", "size"], &["y"], &[]),
    ];
    let case = |last: NodeProto| {
        let name = format!("{} as an input says", last.op_type);
        let nodes = grown.iter().cloned().chain([last]).collect();
        let inputs = [value("x", FLOAT, &[1]), value("s", INT64, &[1])];
        (name, encode(&model(body(&inputs, &[value("y", FLOAT, &[-1])], &inits, nodes))))
    };
    last.into_iter().map(case).collect()
}

/// What is deep, long or wide.
fn depths() -> Vec<Named> {
    let mut cases = Vec::new();
    for depth in [3, 30, 1000, 20_000] {
        cases.push((format!("If, {depth} deep"), nested(depth)));
    }
    for (tag, depth) in [(0x3a, 5_000_000), (0x0b, 5_000_000), (0x0b, 90), (0x7a, 1_000_000)] {
        // A message in a message, or a group in a group, that never end.
        cases.push((format!("tag {tag:#x}, {depth} deep"), vec![tag; depth]));
    }
    for length in [1000, 10_000] {
        let names: Vec<String> = (0..=length).map(|index| format!("v{index}")).collect();
        let mut nodes = vec![node("Relu", &["x"], &[&names[0]], &[])];
        nodes.extend(names.windows(2).map(|pair| node("Neg", &[&pair[0]], &[&pair[1]], &[])));
        nodes.push(node("Relu", &[&names[length]], &["y"], &[]));
        cases.push((format!("{length} nodes in a line"), file(&[1], &[], nodes)));
    }
    let axes = vec![1; 10_000];
    let flat = node("Flatten", &["x"], &["y"], &[]);
    cases.push(("ten thousand axes".into(), file(&axes, &[], vec![flat])));
    cases.into_iter().map(|(name, onnx)| (format!("depths: {name}"), onnx)).collect()
}

/// Built from the inside out, as bytes: dropping a deep message overflows a stack, too.
fn nested(depth: usize) -> Vec<u8> {
    let mut inner =
        body(&[], &[value("y", FLOAT, &[1])], &[], vec![node("Relu", &["x"], &["y"], &[])])
            .encode_to_vec();
    for _ in 0..depth {
        // node { op_type: "If", input: "c", output: "y", attribute { name, type, g } × 2 }
        let branch = |name: &str| {
            let mut attribute = AttributeProto { r#type: 5, ..AttributeProto::default() };
            attribute.name = name.into();
            let mut bytes = attribute.encode_to_vec();
            field(&mut bytes, 6, &inner);
            bytes
        };
        let mut bytes = node("If", &["c"], &["y"], &[]).encode_to_vec();
        field(&mut bytes, 5, &branch("then_branch"));
        if depth < 20 {
            field(&mut bytes, 5, &branch("else_branch"));
        }
        inner = body(&[], &[value("y", FLOAT, &[1])], &[], vec![]).encode_to_vec();
        field(&mut inner, 1, &bytes);
    }
    let doors = body(&[value("x", FLOAT, &[1]), value("c", BOOL, &[])], &[], &[], vec![]);
    inner.extend(doors.encode_to_vec());
    let mut model =
        ModelProto { graph: None, ..model(body(&[], &[], &[], vec![])) }.encode_to_vec();
    field(&mut model, 7, &inner);
    model
}

/// Appends a field of bytes in protobuf's wire format.
fn field(bytes: &mut Vec<u8>, number: u8, content: &[u8]) {
    bytes.push((number << 3) | 2);
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(content);
}
