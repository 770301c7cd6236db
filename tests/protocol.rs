//! The Open Inference Protocol's core and its binary extension, on tiny graphs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Reply, Server, add_request, fixture};

fn serve(models: &[&str]) -> Server {
    let paths: Vec<_> =
        models.iter().map(|model| fixture(&format!("models/{model}.onnx"))).collect();
    Server::start(&paths)
}

fn tensor(name: &str, datatype: &str, shape: Value, data: Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

/// The body of a binary request: JSON, then the tensors.
fn binary_body(json: &Value, tensors: &[&[u8]]) -> (String, Vec<u8>) {
    let json = json.to_string().into_bytes();
    let length = json.len().to_string();
    (length, [json, tensors.concat()].concat())
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Splits a binary answer into its JSON and the rest.
fn split(reply: &Reply) -> (Value, &[u8]) {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    let length: usize = reply
        .header("inference-header-content-length")
        .expect("a length")
        .parse()
        .expect("a number");
    let (json, rest) = reply.body.split_at(length);
    (serde_json::from_slice(json).expect("JSON"), rest)
}

#[test]
fn server_and_health() {
    let server = serve(&["add"]);
    insta::assert_json_snapshot!(server.get("/v2").json(), @r#"
    {
      "extensions": [
        "binary_tensor_data",
        "classification",
        "generate",
        "logging",
        "model_configuration",
        "model_repository",
        "parameters",
        "schedule_policy",
        "statistics",
        "trace"
      ],
      "name": "wisp",
      "version": "0.1.0"
    }
    "#);
    assert_eq!(server.get("/v2/health/live").json(), json!({"live": true}));
    // Metadata waits until the model is loaded.
    assert_eq!(server.get("/v2/models/add").status, 200);
    assert_eq!(server.get("/v2/models/add/ready").json(), json!({"name": "add", "ready": true}));
    assert_eq!(server.get("/v2/health/ready").json(), json!({"ready": true}));
    assert_eq!(server.get("/v2/models").json(), json!({"models": ["add"]}));
}

#[test]
fn metadata_is_read_from_the_graph() {
    let server = serve(&["add", "scale", "types"]);
    insta::assert_json_snapshot!(server.get("/v2/models/add").json(), @r#"
    {
      "inputs": [
        {
          "datatype": "FP32",
          "name": "a",
          "shape": [
            1,
            4
          ]
        },
        {
          "datatype": "FP32",
          "name": "b",
          "shape": [
            1,
            4
          ]
        }
      ],
      "name": "add",
      "outputs": [
        {
          "datatype": "FP32",
          "name": "sum",
          "shape": [
            1,
            4
          ]
        }
      ],
      "platform": "wasm_component",
      "versions": [
        "1"
      ]
    }
    "#);
    let scale = server.get("/v2/models/scale/versions/1").json();
    assert_eq!(scale["inputs"][0]["shape"], json!([-1, 4]));
    assert_eq!(scale["outputs"], json!([{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]));
    assert_eq!(
        server.get("/v2/models/add/versions/1/ready").json(),
        json!({"name": "add", "ready": true})
    );
}

#[test]
fn json_in_any_order_nested_or_flat() {
    let server = serve(&["add"]);
    let a = tensor("a", "FP32", json!([1, 4]), json!([[1, 2.5, 3, 4]]));
    let b = tensor("b", "FP32", json!([1, 4]), json!([10, 20, 30, 40]));
    let reply = server.infer("add", &json!({"id": "x-1", "inputs": [b, a]}));
    assert_eq!(
        reply.json(),
        json!({
            "model_name": "add", "model_version": "1", "id": "x-1",
            "outputs": [{"name": "sum", "datatype": "FP32", "shape": [1, 4], "data": [11.0, 22.5, 33.0, 44.0]}],
        })
    );
    let timing = reply.header("server-timing").expect("a Server-Timing header");
    let phases: Vec<_> =
        timing.split(", ").map(|phase| phase.split(";dur=").next().expect("a name")).collect();
    assert_eq!(phases, ["queue", "sandbox", "guest", "compute"]);
    assert!(
        timing
            .split(";dur=")
            .skip(1)
            .all(|rest| rest.split(',').next().is_some_and(|ms| ms.parse::<f64>().is_ok())),
        "{timing}"
    );
}

/// Data that stands before its datatype, a request without content type, unknown fields.
#[test]
fn what_clients_send_that_the_specification_does_not_show() {
    let server = serve(&["echo"]);
    let body = br#"{"inputs":[{"data":[1,2],"extra":{"x":[1]},"parameters":{"unknown":1},"shape":[2],"datatype":"FP32","name":"x"}],"unknown":null}"#;
    for headers in [
        &[][..],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "application/vnd.api+json; charset=utf-8")],
    ] {
        let reply = server.post("/v2/models/echo/infer", headers, body);
        assert_eq!(reply.floats("y"), [1.0, 2.0]);
    }
}

#[test]
fn free_sizes_take_any_size() {
    let server = serve(&["scale"]);
    for rows in [1usize, 3, 2, 3, 1, 20, 21, 22, 23, 24, 25, 26, 27, 28, 3] {
        let data: Vec<_> = (0..rows * 4).collect();
        let reply = server.infer(
            "scale",
            &json!({"inputs": [tensor("x", "FP32", json!([rows, 4]), json!(data))]}),
        );
        let doubled: Vec<_> = data.iter().map(|&value| 2.0 * value as f64).collect();
        assert_eq!(reply.floats("y"), doubled);
    }
}

#[test]
fn integers_past_2_to_the_53_stay_exact() {
    let server = serve(&["int64"]);
    let reply = server.infer("int64", &json!({"inputs": [tensor("x", "INT64", json!([2]), json!([9007199254740993i64, -9223372036854775808i64]))]}));
    assert_eq!(reply.output("y"), json!([9007199254740994i64, -9223372036854775807i64]));
}

#[test]
fn every_datatype_that_wasi_nn_carries() {
    let server = serve(&["types"]);
    let metadata = server.get("/v2/models/types").json();
    let inputs: Vec<_> = metadata["inputs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|spec| {
            tensor(
                spec["name"].as_str().expect("a name"),
                spec["datatype"].as_str().expect("a datatype"),
                spec["shape"].clone(),
                json!([3, 7]),
            )
        })
        .collect();
    let reply = server.infer("types", &json!({"inputs": inputs}));
    assert_eq!(reply.outputs().len(), inputs.len());
    for output in reply.outputs() {
        let numbers: Vec<_> = output["data"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|value| value.as_f64().expect("a number"))
            .collect();
        assert_eq!(numbers, [3.0, 7.0], "{output}");
    }
}

#[test]
fn binary_in_and_out() {
    let server = serve(&["add"]);
    let (a, b) = (bytes_of(&[1.0, 2.0, 3.0, 4.0]), bytes_of(&[0.5; 4]));
    let input = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}});
    let request = json!({"inputs": [input("a"), input("b")], "outputs": [{"name": "sum", "parameters": {"binary_data": true}}]});
    let (length, body) = binary_body(&request, &[&a, &b]);
    let reply =
        server.post("/v2/models/add/infer", &[("Inference-Header-Content-Length", &length)], &body);
    let (json, data) = split(&reply);
    assert_eq!(
        json["outputs"],
        json!([{"name": "sum", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}])
    );
    assert_eq!(data, bytes_of(&[1.5, 2.5, 3.5, 4.5]));
}

#[test]
fn an_output_s_own_word_on_binary_beats_the_request_s() {
    let server = serve(&["add"]);
    let inputs = json!([
        tensor("a", "FP32", json!([1, 4]), json!([1, 2, 3, 4])),
        tensor("b", "FP32", json!([1, 4]), json!([1, 1, 1, 1]))
    ]);
    let all_binary = json!({"inputs": inputs, "parameters": {"binary_data_output": true}});
    assert_eq!(split(&server.infer("add", &all_binary)).1, bytes_of(&[2.0, 3.0, 4.0, 5.0]));
    let but_this = json!({"inputs": inputs, "parameters": {"binary_data_output": true}, "outputs": [{"name": "sum", "parameters": {"binary_data": false}}]});
    assert_eq!(server.infer("add", &but_this).floats("sum"), [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn json_and_binary_inputs_mix() {
    let server = serve(&["add"]);
    let request = json!({"inputs": [
        tensor("b", "FP32", json!([1, 4]), json!([1, 1, 1, 1])),
        {"name": "a", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}},
    ]});
    let (length, body) = binary_body(&request, &[&bytes_of(&[1.0, 2.0, 3.0, 4.0])]);
    let reply = server.post(
        "/v2/models/add/infer",
        &[
            ("inference-header-content-length", &length),
            ("content-type", "application/octet-stream"),
        ],
        &body,
    );
    assert_eq!(reply.floats("sum"), [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn a_raw_body_is_the_one_input() {
    let server = serve(&["echo"]);
    let body = bytes_of(&[1.0, -2.0, 3.5]);
    let by_type = server.infer_raw("echo", "application/octet-stream", &body);
    assert_eq!(by_type.floats("y"), [1.0, -2.0, 3.5]);
    let by_header =
        server.post("/v2/models/echo/infer", &[("Inference-Header-Content-Length", "0")], &body);
    assert_eq!(split(&by_header).1, body);
}

#[test]
fn bit_patterns_survive_binary_and_are_refused_in_json() {
    let server = serve(&["echo"]);
    let body = bytes_of(&[f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0, -0.0]);
    let binary =
        server.post("/v2/models/echo/infer", &[("Inference-Header-Content-Length", "0")], &body);
    assert_eq!(split(&binary).1, body);
    let json = server.infer_raw("echo", "application/octet-stream", &body);
    insta::assert_snapshot!(json.error(400, "invalid-input"), @"output `y` holds NaN or infinity, which JSON cannot carry: ask for it with `binary_data`");
}

#[test]
fn floats_round_trip_through_json() {
    let server = serve(&["echo"]);
    let values = [0.1f32, 1.0 / 3.0, 16_777_217.0, f32::MAX, f32::MIN_POSITIVE, -1e-45];
    let text: Vec<_> = values.iter().map(|value| format!("{value:e}")).collect();
    let body = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[6],"data":[{}]}}]}}"#,
        text.join(",")
    );
    let reply = server.post("/v2/models/echo/infer", &[], body.as_bytes());
    let back: Vec<f32> = reply.floats("y").iter().map(|&value| value as f32).collect();
    assert_eq!(back, values);
}

/// Two requests on one connection, the second sent before the first is answered, one byte at
/// a time at first: HTTP, not our reading of it, says where requests end.
#[test]
fn requests_in_a_row_on_one_connection() {
    let server = serve(&["echo"]);
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[7]}]}"#;
    let head = format!(
        "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for byte in head.as_bytes().chunks(1) {
        stream.write_all(byte).expect("sent");
    }
    stream.write_all(format!("{body}{head}{body}").as_bytes()).expect("sent");
    let mut reader = BufReader::new(stream);
    for _ in 0..2 {
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).expect("a body");
        assert_eq!(
            serde_json::from_slice::<Value>(&answer).expect("JSON")["outputs"][0]["data"],
            json!([7.0])
        );
    }
}

#[test]
fn statistics_and_metrics_count_the_same() {
    let server = Server::start(&[fixture("models/add.onnx")]);
    for _ in 0..3 {
        assert_eq!(server.infer("add", &add_request()).status, 200);
    }
    server.infer("add", &json!({"inputs": []})).error(400, "invalid-input");
    let stats = server.get("/v2/models/add/stats").json();
    assert_eq!(stats, server.get("/v2/models/add/versions/1/stats").json());
    assert_eq!(stats, server.get("/v2/models/stats").json());
    let [model] = &stats["model_stats"].as_array().expect("a list")[..] else { panic!("{stats}") };
    assert_eq!((&model["name"], &model["version"]), (&json!("add"), &json!("1")));
    assert_eq!(model["inference_count"], 3);
    let spans = &model["inference_stats"];
    let count = |name: &str| spans[name]["count"].as_u64().expect("a number");
    let ns = |name: &str| spans[name]["ns"].as_u64().expect("a number");
    assert_eq!(["success", "fail", "queue", "compute_infer"].map(count), [3, 1, 3, 3]);
    let parts = ["queue", "compute_input", "compute_infer", "compute_output"].map(ns);
    assert!(parts.iter().sum::<u64>() <= ns("success"), "{spans}");
    assert!(ns("compute_infer") > 0 && ns("compute_input") > 0, "{spans}");
    assert_eq!(model["batch_stats"][0]["batch_size"], 1);

    let reply = server.get("/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4"));
    let text = String::from_utf8(reply.body).expect("UTF-8");
    for line in [
        "nv_inference_request_success{model=\"add\",version=\"1\"} 3",
        "nv_inference_request_failure{model=\"add\",reason=\"OTHER\",version=\"1\"} 1",
        "nv_inference_pending_request_count{model=\"add\",version=\"1\"} 0",
        "wisp_request_failures_total{model=\"add\",version=\"1\",kind=\"invalid-input\"} 1",
        "request_predict_seconds_bucket{model_name=\"add\",model_version=\"1\",le=\"+Inf\"} 3",
        "request_predict_seconds_count{model_name=\"add\",model_version=\"1\"} 3",
        "wisp_waiting_requests{model=\"add\",version=\"1\"} 0",
        "wisp_live_sandboxes 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for name in ["sandbox_start", "guest", "compute"] {
        let metric = format!("wisp_{name}_seconds_total{{model=\"add\",version=\"1\"}} ");
        let seconds = text.lines().find_map(|line| line.strip_prefix(&metric)?.parse().ok());
        assert!(seconds.is_some_and(|seconds: f64| seconds > 0.0 && seconds < 60.0), "{text}");
    }
    server.get("/v2/models/nobody/stats").error(404, "unknown-model");
}
