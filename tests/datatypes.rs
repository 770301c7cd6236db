//! Every datatype through a graph: the generic guest takes it, wasi-nn carries it, the engine
//! computes with it. What cannot be is refused before it is served.

use std::path::PathBuf;

use serde_json::json;

use crate::exactness::{extremes, is_half, shape_of};
use crate::support::forms::{Client, Form, Infer, Tensor, bytes_elements, bytes_of};
use crate::support::{fixture, refused, scratch, succeeded, wisp};

fn graph(datatype: &str) -> PathBuf {
    fixture(&format!("models/datatypes/{datatype}.onnx"))
}

fn start() -> Client {
    let graphs: Vec<_> = extremes().iter().map(|(datatype, _)| graph(datatype)).collect();
    Client::start(&graphs, &[])
}

/// Elements of one datatype as the doubles that a graph makes of them.
fn doubles(datatype: &str, data: &[u8]) -> Vec<f64> {
    macro_rules! read {
        ($type:ty) => {{
            const SIZE: usize = size_of::<$type>();
            let elements = data.as_chunks::<SIZE>().0.iter();
            elements.map(|&bytes| <$type>::from_le_bytes(bytes) as f64).collect()
        }};
    }
    match datatype {
        "BOOL" | "UINT8" => read!(u8),
        "UINT16" => read!(u16),
        "UINT32" => read!(u32),
        "UINT64" => read!(u64),
        "INT8" => read!(i8),
        "INT16" => read!(i16),
        "INT32" => read!(i32),
        "INT64" => read!(i64),
        "FP32" => read!(f32),
        "FP64" => read!(f64),
        other => panic!("no number is a {other}"),
    }
}

/// What the second output is: what the engine took the elements for.
fn seen(datatype: &str, data: &[u8]) -> Tensor {
    let [count] = shape_of(datatype, data);
    match datatype {
        "BYTES" => {
            let texts = ["", "\0", "É 漢 😀", "\"\\/\u{8}\n\u{7f}\u{2028}", "A\r\n\tB"];
            Tensor::new("upper", "BYTES", &[count], &bytes_elements(&texts))
        }
        _ => {
            let doubles = bytes_of(&doubles(datatype, data), f64::to_le_bytes);
            Tensor::new("fp64", "FP64", &[count], &doubles)
        }
    }
}

/// Of halves, infinity and the least number, which JSON has in `fp64` at best: as they come, and as the
/// second output has them.
fn halves(infinity: u16, least: u16, seen: f64) -> (Vec<u8>, Tensor) {
    let doubles = bytes_of(&[f64::INFINITY, seen], f64::to_le_bytes);
    let seen = Tensor::new("fp64", "FP64", &[2], &doubles);
    (bytes_of(&[infinity, least], u16::to_le_bytes), seen)
}

#[test]
fn every_datatype_through_a_graph() {
    let client = start();
    for (datatype, data) in extremes() {
        let (data, seen) = match datatype {
            "FP16" => halves(0x7c00, 0xfbff, -65504.0),
            "BF16" => halves(0x7f80, 0xff7f, f32::from_bits(0xff7f_0000).into()),
            _ => {
                let seen = seen(datatype, &data);
                (data, seen)
            }
        };
        let x = Tensor::new("x", datatype, &shape_of(datatype, &data), &data);
        let forms = if is_half(datatype) { &Form::BYTES[..] } else { &Form::ALL[..] };
        for form in forms {
            let answer = client.ask(*form, &Infer::new(datatype, std::slice::from_ref(&x)));
            let answer = answer.unwrap_or_else(|error| panic!("{form:?} {datatype}: {error:?}"));
            assert_eq!(answer.outputs, [x.named("y"), seen.clone()], "{form:?}");
        }
    }
}

#[test]
fn another_datatype_is_refused() {
    let client = start();
    for (datatype, _) in extremes() {
        let other = if datatype == "INT32" { "UINT32" } else { "INT32" };
        let x = Tensor::new("x", other, &[1], &[0; 4]);
        for form in Form::ALL {
            let refused = client.ask(form, &Infer::new(datatype, std::slice::from_ref(&x)));
            let refused = refused.expect_err("of another datatype");
            assert_eq!(refused.code, form.bad_request(), "{datatype}");
            let text = format!("input `x`: expected datatype {datatype}, got {other}");
            assert_eq!(refused.text, text);
        }
    }
}

#[test]
fn elements_that_no_graph_knows_are_refused() {
    let client = start();
    let strings = bytes_elements(&[&b"tiger"[..], b"\xff"]);
    for (x, text) in [
        (Tensor::new("x", "BOOL", &[2], &[1, 2]), "BOOL element 1 is 2, expected 0 or 1"),
        (Tensor::new("x", "BYTES", &[2], &strings), "BYTES element 1 is not UTF-8, as strings are"),
    ] {
        for form in Form::BYTES {
            let infer = Infer::new(&x.datatype, std::slice::from_ref(&x));
            let refused = client.ask(form, &infer).expect_err("no such element");
            assert_eq!(refused.code, form.bad_request());
            assert!(refused.text.ends_with(text), "{}", refused.text);
        }
    }
}

#[test]
fn a_check_takes_what_can_be_carried() {
    for (datatype, _) in extremes() {
        let output = wisp().arg("check").arg(graph(datatype)).output().expect("wisp runs");
        succeeded(&output);
    }
}

#[test]
fn a_check_refuses_what_cannot_be_carried() {
    let refuses = |graph: &str| {
        let graph = fixture(&format!("models/{graph}.onnx"));
        let said = refused(&wisp().arg("check").arg(&graph).output().expect("wisp runs"));
        said.replace(graph.to_str().expect("UTF-8"), "[graph]")
    };
    insta::assert_snapshot!(refuses("sequence"), @"wisp: [graph]: graph `model`: output `y` is not a tensor, and nothing else is served: export the graph with tensors (of scikit-learn, with `zipmap=False`)");
    insta::assert_snapshot!(refuses("float8"), @"wisp: [graph]: graph `model`: output `y` has ONNX's element type FLOAT8E4M3FN, which the protocol lacks: give it another, with a Cast in the graph");
}

/// Engines keep some datatypes in others; a client sees its own.
#[test]
fn rten_gives_the_datatypes_that_were_asked_for() {
    let scratch = scratch();
    let bundle = scratch.path().join("bool");
    std::fs::create_dir_all(&bundle).expect("a folder");
    std::fs::copy(fixture("models/bool.onnx"), bundle.join("model.onnx")).expect("a fixture");
    let manifest = "engine = \"rten\"\n[graphs]\nmodel = \"model.onnx\"\n";
    std::fs::write(bundle.join("wisp.toml"), manifest).expect("a manifest");
    let client = Client::start(&[bundle], &[]);
    let x = json!({"name": "x", "datatype": "BOOL", "shape": [2], "data": [true, false]});
    let reply = client.server.infer("bool", &json!({ "inputs": [x] }));
    assert_eq!(reply.output("y"), json!([true, false]));
}
