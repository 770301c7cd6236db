//! Every engine through the same door: tiny graphs with equal answers, and files that are none.
//!
//! ONNX Runtime is asked where `WISP_TEST_ONNXRUNTIME` names its library; its tests say so and pass
//! where it does not.

#[path = "engines/trust.rs"]
mod trust;

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;
use tract_onnx::pb;
use wisp_engine::tensor::{Datatype, Value, push_bytes_element};
use wisp_engine::{EngineKind, Failure, Graph, OnnxRuntime, Verdict, choose, generated};

/// The engines that can be had here.
fn engines() -> Vec<EngineKind> {
    let mut engines = vec![EngineKind::Tract, EngineKind::Rten];
    if onnxruntime() {
        engines.push(EngineKind::OnnxRuntime);
    }
    engines
}

fn onnxruntime() -> bool {
    let Some(path) = std::env::var_os("WISP_TEST_ONNXRUNTIME") else {
        println!("WISP_TEST_ONNXRUNTIME is not set: ONNX Runtime is not tested");
        return false;
    };
    // SAFETY: whoever set it says that it is ONNX Runtime.
    unsafe { OnnxRuntime::open(Path::new(&path)) }
        .expect("WISP_TEST_ONNXRUNTIME: a library that opens");
    true
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("engine/ lies in the root").to_owned()
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(root().join(format!("tests/fixtures/models/{name}.onnx"))).expect("a fixture")
}

fn value(datatype: Datatype, shape: &[usize], data: &[u8]) -> Value<'static> {
    Value { datatype, shape: shape.into(), data: Cow::Owned(data.to_vec()) }
}

fn floats(shape: &[usize], values: &[f32]) -> Value<'static> {
    value(Datatype::Fp32, shape, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

fn longs(shape: &[usize], values: &[i64]) -> Value<'static> {
    value(Datatype::Int64, shape, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

fn ints(shape: &[usize], values: &[i32]) -> Value<'static> {
    value(Datatype::Int32, shape, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

fn run(graph: &Graph, inputs: &[Value<'static>]) -> Result<Vec<Value<'static>>, Failure> {
    graph.run(&mut inputs.to_vec(), &|| false)
}

/// A graph that gives its input back.
fn identity(element_type: i32, shape: &[i64]) -> Vec<u8> {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = shape.iter().map(|&size| Dimension {
        value: Some(dimension::Value::DimValue(size)),
        ..Dimension::default()
    });
    let tensor = pb::type_proto::Tensor {
        elem_type: element_type,
        shape: Some(pb::TensorShapeProto { dim: dim.collect() }),
    };
    let named = |name: &str| pb::ValueInfoProto {
        name: name.into(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(tensor.clone())),
            ..pb::TypeProto::default()
        }),
        ..pb::ValueInfoProto::default()
    };
    let node = pb::NodeProto {
        input: vec!["x".into()],
        output: vec!["y".into()],
        op_type: "Identity".into(),
        ..pb::NodeProto::default()
    };
    let graph = pb::GraphProto {
        name: "identity".into(),
        node: vec![node],
        input: vec![named("x")],
        output: vec![named("y")],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 13 };
    let model = pb::ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..pb::ModelProto::default()
    };
    model.encode_to_vec()
}

#[test]
fn engines_give_equal_answers() {
    let (a, b) = (ints(&[1, 16], &[7; 16]), ints(&[1, 16], &[2; 16]));
    let row = [1.0, -2.5, 0.0, 3.0];
    let cases = [
        (
            "add",
            vec![floats(&[1, 4], &row), floats(&[1, 4], &[1.0; 4])],
            vec![floats(&[1, 4], &[2.0, -1.5, 1.0, 4.0])],
        ),
        ("simple", vec![a, b], vec![ints(&[1, 16], &[9; 16]), ints(&[1, 16], &[5; 16])]),
        ("scale", vec![floats(&[1, 4], &row)], vec![floats(&[1, 4], &[2.0, -5.0, 0.0, 6.0])]),
        ("scale", vec![floats(&[3, 4], &[1.0; 12])], vec![floats(&[3, 4], &[2.0; 12])]),
        ("gather", vec![longs(&[1], &[2])], vec![floats(&[1], &[3.0])]),
        ("int64", vec![longs(&[2], &[-9, 40])], vec![longs(&[2], &[-8, 41])]),
        (
            "bool",
            vec![value(Datatype::Bool, &[2], &[1, 0])],
            vec![value(Datatype::Bool, &[2], &[1, 0])],
        ),
        ("pool", vec![floats(&[1, 3, 224, 224], &[1.0; 150528])], vec![floats(&[1, 3], &[1.0; 3])]),
        ("echo", vec![floats(&[5], &[0.0, -0.0, 1e-45, 3.5, f32::INFINITY])], Vec::new()),
    ];
    for engine in engines() {
        for (name, inputs, outputs) in &cases {
            let graph = Graph::load(&fixture(name), engine).unwrap();
            let expected = if outputs.is_empty() { inputs } else { outputs };
            assert_eq!(run(&graph, inputs).unwrap(), *expected, "{name} on {engine}");
            for (spec, output) in graph.contract().outputs.iter().zip(expected) {
                let shape: Vec<u64> = output.shape.iter().map(|&size| size as u64).collect();
                assert!(spec.accepts(&shape), "{name} on {engine}: {spec}");
                assert_eq!(spec.datatype, output.datatype, "{name} on {engine}");
            }
        }
    }
}

#[test]
fn a_small_network_gives_the_same_digits() {
    let Ok(onnx) = fs::read(root().join("models/digits/digits.onnx")) else {
        println!("models/digits/digits.onnx is not there: `make models`");
        return;
    };
    // A slanted line.
    let pixel = |index: usize| if (index / 28).abs_diff(index % 28) < 3 { 1.0 } else { 0.0 };
    let picture: Vec<f32> = (0..2 * 28 * 28).map(|index| pixel(index % 784)).collect();
    let mut answers = engines().into_iter().map(|engine| {
        let graph = Graph::load(&onnx, engine).unwrap();
        let [output] = &run(&graph, &[floats(&[2, 1, 28, 28], &picture)]).unwrap()[..] else {
            panic!("one output");
        };
        assert_eq!(output.shape, [2, 10]);
        let (bytes, _) = output.data.as_chunks();
        bytes.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect::<Vec<_>>()
    });
    let first = answers.next().unwrap();
    for other in answers {
        for (a, b) in first.iter().zip(&other) {
            assert!((a - b).abs() < 1e-4, "{first:?} {other:?}");
        }
    }
}

#[test]
fn what_an_engine_cannot_hold_is_refused() {
    let refused = Graph::load(&fixture("types"), EngineKind::Rten).unwrap_err().to_string();
    assert_eq!(
        refused,
        "input `fp64` is FP64, which rten lacks: give it another type, with a Cast in the graph"
    );
    let graph = Graph::load(&fixture("int64"), EngineKind::Rten).unwrap();
    let refused = run(&graph, &[longs(&[2], &[1, 1 << 31])]).unwrap_err();
    let text = "rten keeps INT64 in 32 bits, got 2147483648".to_owned();
    assert_eq!(refused, Failure::Refused(text));
    for engine in engines() {
        let graph = Graph::load(&fixture("bool"), engine).unwrap();
        let refused = run(&graph, &[value(Datatype::Bool, &[2], &[1, 2])]).unwrap_err();
        let text = "graph input `x`: BOOL element 1 is 2, expected 0 or 1";
        assert_eq!(refused, Failure::Refused(text.into()), "{engine}");
    }
}

#[test]
fn a_node_that_fails_is_an_error() {
    for engine in engines() {
        let graph = Graph::load(&fixture("gather"), engine).unwrap();
        for index in [3, -4, i64::from(i32::MAX), i64::from(i32::MIN)] {
            let failed = run(&graph, &[longs(&[1], &[index])]);
            assert!(matches!(failed, Err(Failure::Failed(_))), "{engine}: {failed:?}");
        }
        assert!(run(&graph, &[longs(&[1], &[0])]).is_ok(), "{engine} goes on");
    }
}

#[test]
fn files_that_are_no_graphs_are_refused() {
    let add = fixture("add");
    for engine in engines() {
        for bytes in [&b""[..], b"not a graph", &[0xff; 64], b"RTEN\x02\0\0\0", b"\0\0\0\0ORTM"] {
            assert!(Graph::load(bytes, engine).is_err(), "{engine}: {bytes:?}");
        }
        // None may panic or worse; some are graphs still.
        for length in 0..add.len() {
            let _ = Graph::load(&add[..length], engine);
        }
        for bit in 0..add.len() * 8 {
            let mut bytes = add.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(graph) = Graph::load(&bytes, engine) {
                let _ = run(&graph, &[floats(&[1, 4], &[1.0; 4]), floats(&[1, 4], &[1.0; 4])]);
            }
        }
    }
}

#[test]
fn weights_in_other_files_are_refused() {
    let mut proto = pb::ModelProto::decode(&fixture("scale")[..]).unwrap();
    let two = &mut proto.graph.as_mut().unwrap().initializer[0];
    two.raw_data.clear();
    two.data_location = Some(pb::tensor_proto::DataLocation::External as i32);
    two.external_data =
        vec![pb::StringStringEntryProto { key: "location".into(), value: "Cargo.toml".into() }];
    for engine in engines() {
        let refused = Graph::load(&proto.encode_to_vec(), engine).unwrap_err();
        assert_eq!(refused.to_string(), "the weights of `two` are in another file", "{engine}");
    }
}

#[test]
fn a_run_that_is_over_stops() {
    for engine in engines() {
        let graph = Graph::load(&fixture("matmul_slow"), engine).unwrap();
        let stopped = graph.run(&mut [floats(&[1], &[3.0])], &|| true);
        assert_eq!(stopped, Err(Failure::Stopped), "{engine}");
        let since = Instant::now();
        let is_over = || since.elapsed() > Duration::from_millis(30);
        let stopped = graph.run(&mut [floats(&[1], &[3.0])], &is_over);
        assert_eq!(stopped, Err(Failure::Stopped), "{engine}");
        assert_eq!(run(&graph, &[floats(&[1], &[3.0])]).unwrap()[0], floats(&[1], &[3.0]));
    }
}

/// rten cannot be stopped: what is given up goes on, is counted, and holds up no more than it may.
#[test]
fn what_was_given_up_is_counted_until_it_ends() {
    let graph = Graph::load(&fixture("matmul_slow"), EngineKind::Rten).unwrap();
    let input = [floats(&[1], &[3.0])];
    let given_up = |most: usize| {
        let asked = AtomicUsize::new(0);
        let is_over = || asked.fetch_add(1, Ordering::Relaxed) > most;
        graph.run(&mut input.clone(), &is_over)
    };
    let refused = (0..1000).find_map(|_| match given_up(0) {
        Err(Failure::Stopped) => None,
        other => Some(other),
    });
    let Some(Err(Failure::Failed(reason))) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("whose time is over"), "{reason}");
    let until = Instant::now() + Duration::from_secs(60);
    let answer = loop {
        match run(&graph, &input) {
            Err(Failure::Failed(reason)) if reason.contains("whose time is over") => {
                assert!(Instant::now() < until, "{reason}");
                thread::sleep(Duration::from_millis(5));
            }
            other => break other,
        }
    };
    assert_eq!(answer.unwrap()[0], input[0]);
}

#[test]
fn runs_at_a_time_do_not_mix() {
    for engine in engines() {
        let graph = &Graph::load(&fixture("scale"), engine).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        let input = floats(&[2, 4], &[f32::from(thread); 8]);
                        let output = floats(&[2, 4], &[2.0 * f32::from(thread); 8]);
                        assert_eq!(run(graph, &[input]).unwrap(), [output], "{engine}");
                    }
                });
            }
        });
    }
}

#[test]
fn onnxruntime_takes_every_datatype() {
    if !onnxruntime() {
        return;
    }
    let mut strings = Vec::new();
    for string in ["", "Käse", "a\0b"] {
        push_bytes_element(&mut strings, string.as_bytes()).unwrap();
    }
    let cases = [
        (1, value(Datatype::Fp32, &[2], &[1, 2, 3, 4, 5, 6, 7, 8])),
        (2, value(Datatype::Uint8, &[3], &[0, 1, 255])),
        (3, value(Datatype::Int8, &[3], &[0, 1, 255])),
        (4, value(Datatype::Uint16, &[1], &[0, 255])),
        (5, value(Datatype::Int16, &[1], &[0, 255])),
        (6, value(Datatype::Int32, &[], &[1, 0, 0, 255])),
        (7, value(Datatype::Int64, &[1], &[1, 0, 0, 0, 0, 0, 0, 255])),
        (8, value(Datatype::Bytes, &[3], &strings)),
        (9, value(Datatype::Bool, &[2], &[1, 0])),
        (10, value(Datatype::Fp16, &[1], &[0, 0x3c])),
        (11, value(Datatype::Fp64, &[1], &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f])),
        (12, value(Datatype::Uint32, &[1, 1], &[1, 0, 0, 255])),
        (13, value(Datatype::Uint64, &[1], &[1, 0, 0, 0, 0, 0, 0, 255])),
        (16, value(Datatype::Bf16, &[1], &[0x80, 0x3f])),
    ];
    for (element_type, value) in cases {
        let shape: Vec<i64> = value.shape.iter().map(|&size| size as i64).collect();
        let graph = Graph::load(&identity(element_type, &shape), EngineKind::OnnxRuntime).unwrap();
        assert_eq!(
            run(&graph, std::slice::from_ref(&value)).unwrap(),
            std::slice::from_ref(&value)
        );
        // Bytes as they lie in a guest's memory: anywhere.
        let shifted = [&[0], &value.data[..]].concat();
        let unaligned = Value { data: Cow::Borrowed(&shifted[1..]), ..value.clone() };
        assert_eq!(graph.run(&mut [unaligned], &|| false).unwrap(), [value]);
    }
}

#[test]
fn onnxruntime_is_opened_once() {
    // SAFETY: there is no such file.
    let refused = unsafe { OnnxRuntime::open(Path::new("/nowhere/libonnxruntime.so")) };
    assert!(refused.is_err());
    if !onnxruntime() {
        let refused = Graph::load(&fixture("add"), EngineKind::OnnxRuntime).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "ONNX Runtime's library is not there: `--onnxruntime` names it"
        );
        return;
    }
    assert!(onnxruntime());
    // SAFETY: there is no such file.
    let refused = unsafe { OnnxRuntime::open(Path::new("/nowhere/libonnxruntime.so")) };
    assert!(refused.unwrap_err().to_string().ends_with("is open already"));
}

#[test]
fn engines_are_found_by_name() {
    for engine in EngineKind::ALL {
        assert_eq!(EngineKind::parse(engine.name()), Some(engine));
    }
    assert_eq!(EngineKind::parse("Tract"), None);
}

#[test]
fn the_fastest_that_agrees_is_chosen() {
    let onnx = fixture("pool");
    let graph = Graph::load(&onnx, EngineKind::Tract).unwrap();
    let inputs = generated(graph.contract()).unwrap();
    let engines = [EngineKind::Tract, EngineKind::Rten];
    let choice = choose(&onnx, &engines, &[inputs], 1e-3, false).unwrap();
    let measured = |engine: EngineKind| {
        let found = choice.candidates.iter().find(|candidate| candidate.engine == engine).unwrap();
        match found.verdict {
            Verdict::Measured { cpu_us, difference, .. } => (cpu_us, difference),
            ref other => panic!("{engine}: {other:?}"),
        }
    };
    let [tract, rten] = engines.map(measured);
    assert!(tract.0 > 0 && rten.0 > 0 && rten.1 < 1e-4, "{choice:?}");
    let fastest = if rten.0 * 10 < tract.0 * 9 { EngineKind::Rten } else { EngineKind::Tract };
    assert_eq!(choice.engine, fastest, "{choice:?}");
}

#[test]
fn an_engine_that_answers_otherwise_is_not_chosen() {
    // rten holds 64-bit integers in 32 bits.
    let onnx = fixture("int64_large");
    let graph = Graph::load(&onnx, EngineKind::Tract).unwrap();
    let inputs = [generated(graph.contract()).unwrap()];
    let choice =
        choose(&onnx, &[EngineKind::Tract, EngineKind::Rten], &inputs, 1e-3, false).unwrap();
    assert_eq!(choice.engine, EngineKind::Tract);
    assert!(matches!(choice.candidates[1].verdict, Verdict::Disagrees(_)), "{choice:?}");
    let alone = "no two agree, so tract is taken for being first";
    assert!(choice.reason.contains(alone), "{}", choice.reason);
    let tested =
        choose(&onnx, &[EngineKind::Tract, EngineKind::Rten], &inputs, 1e-3, true).unwrap();
    assert!(!tested.reason.contains(alone), "{}", tested.reason);
}

#[test]
fn an_engine_that_cannot_hold_what_a_graph_takes_is_not_chosen() {
    // Small numbers look the same in 32 bits.
    let onnx = fixture("numbers");
    let inputs = [generated(Graph::load(&onnx, EngineKind::Tract).unwrap().contract()).unwrap()];
    let engines = [EngineKind::Tract, EngineKind::Rten];
    let choice = choose(&onnx, &engines, &inputs, 1e-3, true).unwrap();
    assert_eq!(choice.engine, EngineKind::Tract);
    assert!(choice.reason.contains("rten disagrees: large numbers: "), "{}", choice.reason);
}
