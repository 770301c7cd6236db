//! What a client sends comes back to the bit, in each form that can carry it; what a form cannot
//! carry is refused with the way that can.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::forms::{Client, Form, Infer, Tensor, bytes_elements, bytes_of, read_rest};
use crate::support::grpc::proto::infer_parameter::ParameterChoice;
use crate::support::grpc::proto::{InferParameter, ModelInferResponse};
use crate::support::{identity_bundle, reference_bundle, scratch};

/// A model for each of these tensors, called as they are: it gives back `x` as `y`.
fn serve(models: &[(&str, &str)]) -> (tempfile::TempDir, Client) {
    let folder = scratch();
    let bundle = |(name, tensor): &(&str, &str)| {
        identity_bundle(folder.path(), name, &format!("x y {tensor}"))
    };
    let bundles: Vec<PathBuf> = models.iter().map(bundle).collect();
    let client = Client::start(&bundles, &[]);
    (folder, client)
}

#[track_caller]
fn assert_comes_back(client: &Client, forms: &[Form], model: &str, x: &Tensor) {
    for form in forms {
        let answer = client.ask(*form, &Infer::new(model, std::slice::from_ref(x)));
        let answer = answer.unwrap_or_else(|error| panic!("{form:?} {x:?}: {error:?}"));
        assert_eq!(answer.outputs, [x.named("y")], "{form:?}");
    }
}

/// Every datatype's least, greatest and oddest values that all of its forms can carry.
pub(crate) fn extremes() -> Vec<(&'static str, Vec<u8>)> {
    const PAST_2_TO_THE_53: i64 = (1 << 53) + 1;
    let fp32 = [
        0.0,
        -0.0,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(0x7f_ffff),
        0.1,
        16_777_217.0,
    ];
    let fp64 = [
        0.0,
        -0.0,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        f64::from_bits(1),
        -f64::from_bits((1 << 52) - 1),
        0.1,
        1e23,
    ];
    let half = [0, 0x8000, 0x0001, 0x7bff, 0x7c00, 0xfe01, 0x3f80, 0xffff];
    let texts = ["", "\0", "é 漢 😀", "\"\\/\u{8}\n\u{7f}\u{2028}", "a\r\n\tb"];
    let int64 = [i64::MIN, i64::MAX, -1, 0, PAST_2_TO_THE_53, -PAST_2_TO_THE_53];
    let uint64 = [0, u64::MAX, u64::MAX - 1, 1 << 63, PAST_2_TO_THE_53 as u64];
    vec![
        ("BOOL", vec![0, 1, 1, 0]),
        ("UINT8", (0..=255).collect()),
        ("UINT16", bytes_of(&[0, u16::MAX, 256], u16::to_le_bytes)),
        ("UINT32", bytes_of(&[0, u32::MAX, 1 << 31], u32::to_le_bytes)),
        ("UINT64", bytes_of(&uint64, u64::to_le_bytes)),
        ("INT8", bytes_of(&[0, i8::MIN, i8::MAX, -1], i8::to_le_bytes)),
        ("INT16", bytes_of(&[0, i16::MIN, i16::MAX, -1], i16::to_le_bytes)),
        ("INT32", bytes_of(&[0, i32::MIN, i32::MAX, -1], i32::to_le_bytes)),
        ("INT64", bytes_of(&int64, i64::to_le_bytes)),
        ("FP16", bytes_of(&half, u16::to_le_bytes)),
        ("BF16", bytes_of(&half, u16::to_le_bytes)),
        ("FP32", bytes_of(&fp32, f32::to_le_bytes)),
        ("FP64", bytes_of(&fp64, f64::to_le_bytes)),
        ("BYTES", bytes_elements(&texts)),
    ]
}

/// Of the data of a list.
pub(crate) fn shape_of(datatype: &str, data: &[u8]) -> [i64; 1] {
    let size = match datatype {
        "BOOL" | "UINT8" | "INT8" => 1,
        "UINT16" | "INT16" | "FP16" | "BF16" => 2,
        "UINT32" | "INT32" | "FP32" => 4,
        "UINT64" | "INT64" | "FP64" => 8,
        // The texts of `extremes`.
        _ => return [5],
    };
    [(data.len() / size) as i64]
}

pub(crate) fn is_half(datatype: &str) -> bool {
    matches!(datatype, "FP16" | "BF16")
}

#[test]
fn every_datatype_in_every_form() {
    let models: Vec<(&str, String)> =
        extremes().iter().map(|(datatype, _)| (*datatype, format!("{datatype} -1"))).collect();
    let models: Vec<_> = models.iter().map(|(name, tensor)| (*name, tensor.as_str())).collect();
    let (_folder, client) = serve(&models);
    for (datatype, data) in extremes() {
        let x = Tensor::new("x", datatype, &shape_of(datatype, &data), &data);
        let forms = if is_half(datatype) { &Form::BYTES[..] } else { &Form::ALL[..] };
        assert_comes_back(&client, forms, datatype, &x);
        // No elements is an answer like any other.
        assert_comes_back(&client, forms, datatype, &Tensor::new("x", datatype, &[0], &[]));
    }
}

#[test]
fn halves_are_refused_where_no_number_is_one() {
    let (_folder, client) = serve(&[("FP16", "FP16 -1"), ("BF16", "BF16 -1")]);
    for datatype in ["FP16", "BF16"] {
        let x = Tensor::new("x", datatype, &[2], &[0, 1, 2, 3]);
        let infer = Infer::new(datatype, &[x]);
        let came_in = client.ask(Form::Json, &infer).expect_err("JSON has no such number");
        assert_eq!((came_in.code.as_str(), came_in.kind.as_str()), ("400", "invalid-input"));
        assert_eq!(
            came_in.text,
            format!("input `x`: {datatype} cannot be sent as JSON: send it as binary tensor data")
        );
        let typed = client.ask(Form::Typed, &infer).expect_err("gRPC has no such field");
        assert_eq!(typed.code, "InvalidArgument");
        assert_eq!(
            typed.text,
            format!("input `x`: {datatype} has no typed contents: send it as raw_input_contents")
        );
        let (mut head, data) = infer.binary();
        head["parameters"] = json!({});
        let went_out = client.infer_binary(datatype, &head, &data).error(400, "invalid-input");
        assert_eq!(
            went_out,
            format!(
                "output `y` is {datatype}, which JSON cannot carry: ask for it with `binary_data`"
            )
        );
    }
}

/// NaNs with their payloads and signs, signalling ones too.
#[test]
fn nan_and_infinity_keep_their_bits() {
    let (_folder, client) = serve(&[("FP32", "FP32 -1"), ("FP64", "FP64 -1")]);
    let fp32: [u32; 5] = [0x7fc0_0000, 0xffc1_2345, 0x7f80_0001, 0x7f80_0000, 0xff80_0000];
    let fp64: [u64; 5] = [
        0x7ff8_0000_0000_0000,
        0xfff8_0000_dead_beef,
        0x7ff0_0000_0000_0001,
        0x7ff0_0000_0000_0000,
        0xfff0_0000_0000_0000,
    ];
    for (datatype, data) in
        [("FP32", bytes_of(&fp32, u32::to_le_bytes)), ("FP64", bytes_of(&fp64, u64::to_le_bytes))]
    {
        let x = Tensor::new("x", datatype, &[5], &data);
        assert_comes_back(&client, &[Form::Binary, Form::Raw, Form::Typed], datatype, &x);
        let (mut head, data) = Infer::new(datatype, &[x]).binary();
        head["parameters"] = json!({});
        let refused = client.infer_binary(datatype, &head, &data).error(400, "invalid-input");
        assert_eq!(
            refused,
            "output `y` holds NaN or infinity, which JSON cannot carry: ask for it with `binary_data`"
        );
    }
}

#[test]
fn nan_and_infinity_are_not_json() {
    let (_folder, client) = serve(&[("FP32", "FP32 -1"), ("FP64", "FP64 -1")]);
    for datatype in ["FP32", "FP64"] {
        let path = format!("/v2/models/{datatype}/infer");
        let post = |value: &str| {
            let body = format!(
                r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[2],"data":[0.5,{value}]}}]}}"#
            );
            client.server.post(&path, &[], body.as_bytes())
        };
        for token in ["NaN", "Infinity", "-Infinity"] {
            let refused = post(token).error(400, "invalid-input");
            assert!(refused.contains("binary"), "{token}: {refused}");
        }
        for other in ["nan", "inf", "+1", "1e999", "\"NaN\"", "\"0.5\"", "null", ".5", "1.", "0x1"]
        {
            post(other).error(400, "invalid-input");
        }
        for (number, value) in [("-0", -0.0), ("-0.0", -0.0), ("1E2", 100.0), ("1e-999", 0.0)] {
            let y = post(number).floats("y");
            assert_eq!(y[1].to_bits(), f64::to_bits(value), "{number}");
        }
    }
}

#[test]
fn bytes_that_are_no_text() {
    let (_folder, client) = serve(&[("BYTES", "BYTES -1")]);
    let data = bytes_elements(&[&b"\xff\xfe"[..], b"", b"\xed\xa0\x80", b"\0\0", b"text"]);
    let x = Tensor::new("x", "BYTES", &[5], &data);
    assert_comes_back(&client, &[Form::Binary, Form::Raw, Form::Typed], "BYTES", &x);
    let (mut head, data) = Infer::new("BYTES", &[x]).binary();
    head["parameters"] = json!({});
    insta::assert_snapshot!(client.infer_binary("BYTES", &head, &data).error(400, "invalid-input"), @"output `y` holds bytes that are not UTF-8, which JSON cannot carry: ask for it with `binary_data`");
    // Half of a character, in JSON's own way and in bytes.
    let body = |text: &[u8]| {
        let before = br#"{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":[""#;
        [&before[..], text, b"\"]}]}"].concat()
    };
    let post = |text: &[u8]| client.server.post("/v2/models/BYTES/infer", &[], &body(text));
    post(br"\ud83d").error(400, "invalid-input");
    post(b"\xf0\x9f").error(400, "invalid-input");
    assert_eq!(post(br"\ud83d\ude00\u0000").strings("y"), ["😀\0"]);
}

#[test]
fn scalars_eight_dimensions_and_none() {
    let free = "FP32 -1,-1,-1,-1,-1,-1,-1,-1";
    let (_folder, client) =
        serve(&[("scalar", "INT64"), ("eight", free), ("text", "BYTES"), ("words", "BYTES -1,-1")]);
    let all = &Form::ALL;
    let scalar = Tensor::new("x", "INT64", &[], &i64::MIN.to_le_bytes());
    assert_comes_back(&client, all, "scalar", &scalar);
    assert_comes_back(
        &client,
        all,
        "text",
        &Tensor::new("x", "BYTES", &[], &bytes_elements(&["7"])),
    );

    let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
    let data = bytes_of(&values, f32::to_le_bytes);
    for shape in [[1, 2, 1, 3, 1, 4, 1, 1], [24, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 3, 1, 1, 1, 1]] {
        assert_comes_back(&client, all, "eight", &Tensor::new("x", "FP32", &shape, &data));
    }
    let empty = [1, 2, 3, 0, 5, 6, 7, 8];
    assert_comes_back(&client, all, "eight", &Tensor::new("x", "FP32", &empty, &[]));
    for shape in [[0, 0], [0, 9], [9, 0]] {
        assert_comes_back(&client, all, "words", &Tensor::new("x", "BYTES", &shape, &[]));
    }

    // JSON's lists may follow the shape or not, and a scalar may stand for itself.
    let ask = |model: &str, datatype: &str, shape: Value, data: Value| {
        let x = json!({"name": "x", "datatype": datatype, "shape": shape, "data": data});
        client.server.infer(model, &json!({ "inputs": [x] }))
    };
    assert_eq!(ask("scalar", "INT64", json!([]), json!(7)).output("y"), json!([7]));
    assert_eq!(ask("scalar", "INT64", json!([]), json!([7])).output("y"), json!([7]));
    let nested = json!([[[[[[[[1, 2]]]]]], [[[[[[3, 4]]]]]]]]);
    let reply = ask("eight", "FP32", json!([1, 2, 1, 1, 1, 1, 1, 2]), nested);
    assert_eq!(reply.floats("y"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(ask("words", "BYTES", json!([2, 0]), json!([[], []])).output("y"), json!([]));
}

/// One element of each datatype, a scalar and eight dimensions: the inputs of `identity`.
fn one_of_each() -> Vec<Tensor> {
    let mut inputs: Vec<Tensor> = Vec::new();
    for (datatype, data) in extremes() {
        let data = match datatype {
            "BYTES" => bytes_elements(&["one"]),
            _ => data[..data.len() / shape_of(datatype, &data)[0] as usize].to_vec(),
        };
        inputs.push(Tensor::new(&datatype.to_lowercase(), datatype, &[1], &data));
    }
    let data = 0.5f32.to_le_bytes();
    inputs.push(Tensor::new("scalar", "FP32", &[], &data));
    inputs.push(Tensor::new("eight", "FP32", &[1; 8], &data));
    inputs
}

fn serve_identity() -> (tempfile::TempDir, Client) {
    let folder = scratch();
    let client = Client::start(&[reference_bundle(folder.path(), "identity")], &[]);
    (folder, client)
}

#[test]
fn outputs_come_as_they_are_asked_for() {
    let (_folder, client) = serve_identity();
    let mut inputs = one_of_each();
    let all: Vec<Tensor> = inputs.iter().map(|x| x.named(&format!("{}_out", x.name))).collect();
    // In any order: the contract's is that of the answer.
    inputs.reverse();
    let infer = Infer::new("identity", &inputs);
    for form in Form::BYTES {
        assert_eq!(client.ask(form, &infer).expect("an answer").outputs, all, "{form:?}");
        let some = infer.clone().wanting(&["scalar_out", "bool_out", "bytes_out", "int64_out"]);
        let outputs = client.ask(form, &some).expect("an answer").outputs;
        let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, some.outputs, "{form:?}");
        assert!(outputs.iter().all(|output| all.contains(output)), "{outputs:?}");
    }
}

#[test]
fn json_and_binary_mix_both_ways() {
    let (_folder, client) = serve_identity();
    let inputs = one_of_each();
    // Every other one is binary, and those that JSON cannot carry.
    let is_binary =
        |(index, input): (usize, &Tensor)| is_half(&input.datatype) || index.is_multiple_of(2);
    let (mut heads, mut wanted, mut data) = (Vec::new(), Vec::new(), Vec::new());
    for (index, input) in inputs.iter().enumerate() {
        let binary = is_binary((index, input));
        heads.push(if binary { input.binary() } else { input.json() });
        if binary {
            data.extend_from_slice(&input.data);
        }
        let parameters = json!({"binary_data": is_half(&input.datatype) || !binary});
        wanted.push(json!({"name": format!("{}_out", input.name), "parameters": parameters}));
    }
    let reply =
        client.infer_binary("identity", &json!({"inputs": heads, "outputs": wanted}), &data);
    let expected: Vec<Tensor> =
        inputs.iter().map(|input| input.named(&format!("{}_out", input.name))).collect();
    assert_eq!(read_rest(&reply).expect("an answer").outputs, expected);
}

#[test]
fn an_id_comes_back_as_it_was_and_none_where_there_was_none() {
    let (_folder, client) = serve(&[("FP32", "FP32 -1")]);
    let x = Tensor::new("x", "FP32", &[1], &[0; 4]);
    let infer = Infer::new("FP32", &[x]);
    for form in Form::ALL {
        assert_eq!(client.ask(form, &infer).expect("an answer").id, None, "{form:?}");
        for id in ["7", " spaces ", "é\"\\\n😀\0", &"long".repeat(1000)] {
            let infer = Infer { id: Some(id.to_owned()), ..infer.clone() };
            assert_eq!(client.ask(form, &infer).expect("an answer").id.as_deref(), Some(id));
        }
    }
}

#[test]
fn unknown_parameters_are_ignored() {
    let (_folder, client) = serve(&[("FP32", "FP32 -1")]);
    let x = Tensor::new("x", "FP32", &[1], &0.5f32.to_le_bytes());
    let infer = Infer::new("FP32", std::slice::from_ref(&x)).wanting(&["y"]);
    let odd = json!({"unknown": "x", "number": 1e300, "whole": -7, "none": null, "list": [[1]], "object": {"a": {}}});
    let add = |body: &mut Value| {
        for at in ["", "/inputs/0", "/outputs/0"] {
            let place = body.pointer_mut(at).expect("it is there").as_object_mut();
            let parameters = place.expect("an object").entry("parameters").or_insert(json!({}));
            let parameters = parameters.as_object_mut().expect("an object");
            parameters.extend(odd.as_object().expect("an object").clone());
        }
    };
    let mut body = infer.json();
    add(&mut body);
    let answer = read_rest(&client.server.infer("FP32", &body)).expect("an answer");
    assert_eq!(answer.outputs, [x.named("y")]);
    let (mut head, data) = infer.binary();
    add(&mut head);
    let answer = read_rest(&client.infer_binary("FP32", &head, &data)).expect("an answer");
    assert_eq!(answer.outputs, [x.named("y")]);

    let odd = || {
        let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
        [
            ("unknown".to_owned(), parameter(ParameterChoice::StringParam("x".into()))),
            ("number".to_owned(), parameter(ParameterChoice::DoubleParam(f64::NAN))),
            ("whole".to_owned(), parameter(ParameterChoice::Uint64Param(u64::MAX))),
            ("none".to_owned(), InferParameter { parameter_choice: None }),
        ]
    };
    for mut request in [infer.raw(), infer.typed()] {
        request.parameters.extend(odd());
        request.inputs[0].parameters.extend(odd());
        request.outputs[0].parameters.extend(odd());
        let answer = client.grpc.call::<ModelInferResponse>("ModelInfer", &request);
        assert_eq!(answer.expect("an answer").raw_output_contents[0], x.data);
    }
}

/// The reference servers' own examples.
#[test]
fn the_usual_small_models() {
    let folder = scratch();
    let client = Client::start(
        &[
            crate::support::fixture("models/simple.onnx"),
            reference_bundle(folder.path(), "simple_string"),
            reference_bundle(folder.path(), "simple_identity"),
        ],
        &[],
    );
    let texts: Vec<String> = (0..16).map(|value: i32| (value - 2).to_string()).collect();
    let numbers: Vec<i32> = (0..16).map(|value| value - 2).collect();
    let ones = (["1"; 16], [1; 16]);
    let string = |name: &str, data: Vec<u8>| Tensor::new(name, "BYTES", &[1, 16], &data);
    let int32 = |name: &str, values: &[i32]| {
        Tensor::new(name, "INT32", &[1, 16], &bytes_of(values, i32::to_le_bytes))
    };
    let simple = Infer::new("simple", &[int32("INPUT0", &numbers), int32("INPUT1", &ones.1)]);
    let simple_string = Infer::new(
        "simple_string",
        &[string("INPUT0", bytes_elements(&texts)), string("INPUT1", bytes_elements(&ones.0))],
    );
    let plus = |by: i32| numbers.iter().map(|value| value + by).collect::<Vec<i32>>();
    let plus_text = |by| plus(by).iter().map(i32::to_string).collect::<Vec<String>>();
    for form in Form::ALL {
        assert_eq!(
            client.ask(form, &simple).expect("an answer").outputs,
            [int32("OUTPUT0", &plus(1)), int32("OUTPUT1", &plus(-1))]
        );
        assert_eq!(
            client.ask(form, &simple_string).expect("an answer").outputs,
            [
                string("OUTPUT0", bytes_elements(&plus_text(1))),
                string("OUTPUT1", bytes_elements(&plus_text(-1)))
            ]
        );
        let mut wrong = simple_string.clone();
        wrong.inputs[1].data = bytes_elements(&["x"; 16]);
        let refused = client.ask(form, &wrong).expect_err("no integer");
        assert_eq!(
            (refused.code.as_str(), refused.kind.as_str()),
            (form.bad_request(), "invalid-input")
        );
        assert_eq!(
            refused.text,
            "input `INPUT1`: element 0: expected an integer of 32 bits, got \"x\""
        );
        let words = Tensor::new("INPUT0", "BYTES", &[2, 1], &bytes_elements(&["a", "b"]));
        let identity = Infer::new("simple_identity", std::slice::from_ref(&words));
        assert_eq!(
            client.ask(form, &identity).expect("an answer").outputs,
            [words.named("OUTPUT0")]
        );
    }
}
