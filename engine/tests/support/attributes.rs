//! Attributes that no exporter writes: of the wrong type, of absurd values, and lists that do not
//! fit each other.

use tract_onnx::pb::{AttributeProto, NodeProto};

use crate::build::{
    FLOAT, INT64, STRING, body, file, float, floats, graph, int, ints, longs, ml, model, node, raw,
    singles, tensor, text, texts, value,
};
use crate::encode::encode;
use crate::hostile::Named;

pub fn cases() -> Vec<Named> {
    [attributes(), lists()].into_iter().flatten().collect()
}

/// Attributes of the wrong type, and of absurd values.
fn attributes() -> Vec<Named> {
    let absurd = [0, -1, 2, 1 << 31, 1 << 40, i64::MAX, i64::MIN];
    let weights = singles("w", &[1, 1, 1, 1], &[1.0]);
    let picture = |node: NodeProto| file(&[1, 1, 4, 4], std::slice::from_ref(&weights), vec![node]);
    let mut cases: Vec<Named> = Vec::new();
    for &number in &absurd {
        let pair = [number, number];
        let four = [number; 4];
        let attributes = [
            ints("strides", &pair),
            ints("dilations", &pair),
            ints("pads", &four),
            ints("kernel_shape", &pair),
            int("group", number),
            ints("strides", &[number]),
            ints("output_padding", &pair),
            ints("output_shape", &pair),
        ];
        for attribute in attributes {
            for operator in ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"] {
                let is_pool = operator.ends_with("Pool");
                let inputs: &[&str] = if is_pool { &["x"] } else { &["x", "w"] };
                let mut attributes = vec![attribute.clone()];
                if is_pool && attribute.name != "kernel_shape" {
                    attributes.push(ints("kernel_shape", &[2, 2]));
                }
                let name = format!("{operator} {} {number}", attribute.name);
                cases.push((name, picture(node(operator, inputs, &["y"], &attributes))));
            }
        }
        let axes = ["Softmax", "LogSoftmax", "Hardmax", "Flatten", "Split", "Concat", "ArgMax"];
        for operator in axes.into_iter().chain(["LayerNormalization", "LpNormalization"]) {
            let attributes = [int("axis", number)];
            cases.push((
                format!("{operator} axis {number}"),
                picture(node(operator, &["x", "x"], &["y"], &attributes)),
            ));
        }
        let list = longs("list", &[1], &[number]);
        for operator in ["Squeeze", "Unsqueeze", "ReduceSum", "Split", "CumSum", "Slice", "Trilu"] {
            let node = node(operator, &["x", "list", "list", "list"], &["y"], &[]);
            cases.push((
                format!("{operator} by {number}"),
                file(&[1, 1, 4, 4], std::slice::from_ref(&list), vec![node]),
            ));
        }
        for operator in ["TopK", "Gather", "GatherND", "GatherElements", "ScatterND"] {
            let node = node(operator, &["x", "list", "x"], &["y"], &[]);
            cases.push((
                format!("{operator} at {number}"),
                file(&[4], std::slice::from_ref(&list), vec![node]),
            ));
        }
        let sizes = [
            ("LSTM", "hidden_size"),
            ("LRN", "size"),
            ("DepthToSpace", "blocksize"),
            ("SpaceToDepth", "blocksize"),
            ("EyeLike", "k"),
            ("Cast", "to"),
            ("GroupNormalization", "num_groups"),
            ("Gelu", "approximate"),
        ];
        for (operator, name) in sizes {
            let node = node(operator, &["x", "w", "w"], &["y"], &[int(name, number)]);
            cases.push((format!("{operator} {name} {number}"), picture(node)));
        }
    }
    for perm in [&[0, 0, 0, 0][..], &[0, 1], &[3, 2, 1, 4], &[-1, 0, 1, 2], &[1 << 40; 4], &[0; 65]]
    {
        let node = node("Transpose", &["x"], &["y"], &[ints("perm", perm)]);
        cases.push((format!("Transpose {perm:?}"), picture(node)));
    }
    let einsums =
        ["", "->", "ij", "ijkl,ijkl,ijkl->", "i...j->", "(((", "ijkl->ijklmnop", "\u{e9}"];
    for equation in einsums {
        let node = node("Einsum", &["x"], &["y"], &[text("equation", equation)]);
        cases.push((format!("Einsum {equation:?}"), picture(node)));
    }
    cases.extend(of_other_types().into_iter().map(|(name, node)| (name, picture(node))));
    cases.into_iter().map(|(name, onnx)| (format!("attributes: {name}"), onnx)).collect()
}

fn of_other_types() -> Vec<(String, NodeProto)> {
    let mut nodes = Vec::new();
    let known = [("Conv", "strides"), ("Softmax", "axis"), ("Gemm", "alpha"), ("Pad", "mode")];
    for (operator, name) in known {
        let others = [
            int(name, 1),
            float(name, f32::NAN),
            text(name, "\0"),
            ints(name, &[]),
            floats(name, &[f32::INFINITY]),
            texts(name, &["", ""]),
            tensor(name, raw("", 99, &[-1], &[])),
            graph(name, body(&[], &[], &[], vec![])),
            AttributeProto { name: name.into(), ..AttributeProto::default() },
            AttributeProto { r#type: 77, ..int(name, 1) },
        ];
        for (index, other) in others.into_iter().enumerate() {
            let node = node(operator, &["x", "w"], &["y"], &[other.clone(), other]);
            nodes.push((format!("{operator} {name}, type {index}"), node));
        }
    }
    nodes
}

/// Trees, encoders and texts whose lists do not fit each other.
fn lists() -> Vec<Named> {
    let mut cases: Vec<Named> = Vec::new();
    let trees: [(&str, [&[i64]; 4]); 8] = [
        ("sound", [&[0, 0, 0], &[0, 1, 2], &[1, 0, 0], &[2, 0, 0]]),
        ("a circle", [&[0, 0, 0], &[0, 1, 2], &[1, 0, 0], &[0, 0, 0]]),
        ("its own child", [&[0, 0, 0], &[0, 1, 2], &[0, 0, 0], &[0, 0, 0]]),
        ("far children", [&[0, 0, 0], &[0, 1, 2], &[9, 0, 0], &[-1, 0, 0]]),
        ("giant ids", [&[0, 0, 0], &[0, i64::MAX, i64::MIN], &[i64::MAX, 0, 0], &[i64::MIN, 0, 0]]),
        ("short lists", [&[0, 0, 0], &[0, 1, 2], &[1], &[]]),
        ("no nodes", [&[], &[], &[], &[]]),
        ("giant trees", [&[0, 1 << 40, 0], &[0, 1, 2], &[1, 0, 0], &[2, 0, 0]]),
    ];
    for (name, [trees, ids, yes, no]) in trees {
        for threshold in [0.5, f32::NAN, f32::INFINITY] {
            for feature in [0, 3, -1, 1 << 40] {
                let name = format!("{name}, {threshold}, feature {feature}");
                cases.push((name, tree(trees, ids, yes, no, threshold, feature)));
            }
        }
    }
    let encoders = [
        ([texts("keys_strings", &["a", "b"]), ints("values_int64s", &[1])], STRING, INT64),
        ([texts("keys_strings", &["a", "a"]), ints("values_int64s", &[1, 2])], STRING, INT64),
        ([ints("keys_int64s", &[]), texts("values_strings", &["a"])], INT64, STRING),
        ([floats("keys_floats", &[f32::NAN; 2]), ints("values_int64s", &[1, 2])], FLOAT, INT64),
        ([ints("keys_int64s", &[1]), ints("keys_int64s", &[2])], INT64, INT64),
    ];
    for (index, (attributes, from, to)) in encoders.into_iter().enumerate() {
        let node = ml("LabelEncoder", &["x"], &["y"], &attributes);
        let (x, y) = (value("x", from, &[3]), value("y", to, &[3]));
        let onnx = encode(&model(body(&[x], &[y], &[], vec![node])));
        cases.push((format!("LabelEncoder {index}"), onnx));
    }
    cases.extend(ngrams());
    cases.into_iter().map(|(name, onnx)| (format!("lists: {name}"), onnx)).collect()
}

fn tree(
    trees: &[i64],
    ids: &[i64],
    yes: &[i64],
    no: &[i64],
    threshold: f32,
    feature: i64,
) -> Vec<u8> {
    let attributes = [
        ints("nodes_treeids", trees),
        ints("nodes_nodeids", ids),
        ints("nodes_featureids", &vec![feature; ids.len()]),
        floats("nodes_values", &vec![threshold; ids.len()]),
        texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"][..ids.len()]),
        ints("nodes_truenodeids", yes),
        ints("nodes_falsenodeids", no),
        ints("target_treeids", &[0, 0]),
        ints("target_nodeids", &[1, 2]),
        ints("target_ids", &[0, 0]),
        floats("target_weights", &[1.0, 2.0]),
        int("n_targets", 1),
    ];
    file(&[2, 2], &[], vec![ml("TreeEnsembleRegressor", &["x"], &["y"], &attributes)])
}

fn ngrams() -> Vec<Named> {
    let mut cases = Vec::new();
    let absurd = [0, -1, 1 << 40, i64::MAX, i64::MIN];
    for number in absurd {
        for which in 0..5 {
            let at = |index: usize, plain: i64| if which == index { number } else { plain };
            let attributes = [
                text("mode", "TF"),
                int("min_gram_length", at(0, 1)),
                int("max_gram_length", at(1, 2)),
                int("max_skip_count", at(2, 0)),
                ints("ngram_counts", &[0, at(3, 2)]),
                ints("ngram_indexes", &[0, at(4, 1)]),
                ints("pool_int64s", &[1, 2]),
            ];
            let node = node("TfIdfVectorizer", &["x"], &["y"], &attributes);
            let (x, y) = (value("x", INT64, &[4]), value("y", FLOAT, &[-1]));
            let onnx = encode(&model(body(&[x], &[y], &[], vec![node])));
            cases.push((format!("TfIdfVectorizer {which}: {number}"), onnx));
        }
    }
    cases
}
