//! The protocol's extensions over HTTP, and OpenAI's embeddings; tests/conformance has the clients.

use std::fs;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::thread;

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::support::grpc::{Grpc, proto};
use crate::support::{
    Reply, Server, add_request, fixture, identity_bundle, model, scratch, succeeded, wisp,
};

fn add() -> Vec<std::path::PathBuf> {
    vec![fixture("models/add.onnx")]
}

fn post(server: &Server, path: &str, body: &Value) -> Reply {
    server.post(path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

#[test]
fn bodies_are_compressed_both_ways() {
    let server = Server::start(&[fixture("models/wide.onnx")]);
    let data: Vec<f32> = (0..150_528u32).map(|value| (value % 100) as f32 / 8.0).collect();
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 150_528], "data": data});
    let body = json!({"inputs": [input]}).to_string().into_bytes();
    let plain = server.post("/v2/models/wide/infer", &[], &body);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&body).expect("memory");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(&body).expect("memory");
    for (coding, body) in
        [("gzip", gzip.finish().expect("memory")), ("deflate", zlib.finish().expect("memory"))]
    {
        let headers = [("content-encoding", coding), ("accept-encoding", coding)];
        let reply = server.post("/v2/models/wide/infer", &headers, &body);
        assert_eq!((reply.status, reply.header("content-encoding")), (200, Some(coding)));
        assert_eq!(reply.header("vary"), Some("accept-encoding"));
        assert!(reply.body.len() * 2 < plain.body.len(), "{} bytes", reply.body.len());
        let mut read = Vec::new();
        match coding {
            "gzip" => GzDecoder::new(&reply.body[..]).read_to_end(&mut read),
            _ => ZlibDecoder::new(&reply.body[..]).read_to_end(&mut read),
        }
        .expect("whole");
        assert!(read == plain.body);
    }
}

#[test]
fn classes_have_labels() {
    let folder = scratch();
    let bundle = folder.path().join("scale");
    fs::create_dir(&bundle).expect("a folder");
    fs::copy(fixture("models/scale.onnx"), bundle.join("model.onnx")).expect("a graph");
    fs::write(bundle.join("names.txt"), "ant\nbee\ncat\n").expect("labels");
    let manifest =
        "assets = [\"names.txt\"]\n[graphs]\nmodel = \"model.onnx\"\n[labels]\ny = \"names.txt\"\n";
    fs::write(bundle.join("wisp.toml"), manifest).expect("a manifest");
    let server = Server::start(&[bundle]);
    let ask = |classes: Value| {
        let x = json!({"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 4, 3, 2, 8, 5, 6, 7]});
        let y = json!({"name": "y", "parameters": {"classification": classes}});
        server.infer("scale", &json!({"inputs": [x], "outputs": [y]}))
    };
    let outputs = ask(json!(2)).outputs();
    let expected = json!([{"name": "y", "datatype": "BYTES", "shape": [2, 2],
        "data": ["8:1:bee", "6:2:cat", "16:0:ant", "14:3"]}]);
    assert_eq!(Value::from(outputs), expected);
    assert_eq!(ask(json!(9)).outputs()[0]["shape"], json!([2, 4]));
    assert_eq!(ask(json!(0)).outputs()[0]["datatype"], "FP32");
    insta::assert_snapshot!(ask(json!(-1)).error(400, "invalid-input"), @"output `y`: parameter `classification`: expected an integer of 0 or more, got -1");
}

#[test]
fn a_client_shortens_its_deadline() {
    let server = Server::start(&[fixture("models/matmul_slow.onnx")]);
    let x = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [3]});
    let ask = |parameters: Value| {
        server.infer("matmul_slow", &json!({"inputs": [x], "parameters": parameters}))
    };
    assert_eq!(ask(json!({"timeout": 0, "priority": 1})).floats("y"), [3.0]);
    let late = ask(json!({"timeout": 2000})).error(504, "deadline");
    insta::assert_snapshot!(late, @"model `matmul_slow` did not answer within 2ms");
    let text = ask(json!({"priority": "high"})).error(400, "invalid-input");
    insta::assert_snapshot!(text, @r#"parameter `priority`: expected a level, an integer of 0 or more, got "high""#);
    let text = ask(json!({"timeout": {}})).error(400, "invalid-input");
    insta::assert_snapshot!(text, @"the body is not an inference request: parameter `timeout`: expected a string, a number or a boolean at line 1 column 92");

    let grpc = Grpc::connect(&server);
    let input = proto::model_infer_request::InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1],
        ..Default::default()
    };
    let request = proto::ModelInferRequest {
        model_name: "matmul_slow".into(),
        inputs: vec![input],
        raw_input_contents: vec![3f32.to_le_bytes().to_vec().into()],
        ..Default::default()
    };
    let call = |timeout| {
        let metadata = [("grpc-timeout", timeout)];
        grpc.call_with::<proto::ModelInferResponse>("ModelInfer", &metadata, &request)
    };
    assert_eq!(call("1M").expect("in time").outputs.len(), 1);
    assert_eq!(call("2m").expect_err("late").code(), tonic::Code::DeadlineExceeded);
}

#[test]
fn a_client_cannot_lengthen_its_deadline() {
    let flags = ["--deadline-ms", "2"];
    let server = Server::start_with(&[fixture("models/matmul_slow.onnx")], &flags);
    let x = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [3]});
    let parameters = json!({"timeout": 60_000_000});
    let late = server.infer("matmul_slow", &json!({"inputs": [x], "parameters": parameters}));
    insta::assert_snapshot!(late.error(504, "deadline"), @"model `matmul_slow` did not answer within 2ms");
}

#[test]
fn the_first_priority_goes_first() {
    let flags = ["--concurrency", "1"];
    let server = Server::start_with(&[fixture("models/matmul_slow.onnx")], &flags);
    let ask = |id: &str, priority: u32| {
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [3]});
        let parameters = json!({"priority": priority});
        let body = json!({"id": id, "inputs": [x], "parameters": parameters});
        assert_eq!(server.infer("matmul_slow", &body).floats("y"), [3.0]);
    };
    let waiting = || {
        let text = String::from_utf8(server.get("/metrics").body).expect("UTF-8");
        let mut lines = text.lines();
        let value = lines.find_map(|line| {
            line.strip_prefix("wisp_waiting_requests{model=\"matmul_slow\",version=\"1\"} ")
        });
        value.expect("a metric").parse::<usize>().expect("a number")
    };
    let answered = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let send = |id: &'static str, priority| {
            let (ask, answered) = (&ask, &answered);
            scope.spawn(move || {
                ask(id, priority);
                answered.lock().expect("no holder panics").push(id);
            });
        };
        // The first few keep the model busy until the last two wait.
        for (expected, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
            send(id, 2);
            while answered.lock().expect("no holder panics").is_empty() && waiting() < expected {
                thread::yield_now();
            }
        }
        let before = waiting();
        send("last", 9);
        while waiting() == before && before > 0 {
            thread::yield_now();
        }
        send("first", 1);
    });
    let answered = answered.into_inner().expect("no holder panics");
    let place = |id| answered.iter().position(|other| *other == id).expect("answered");
    assert!(place("first") < place("last"), "{answered:?}");
    assert_eq!(place("last"), 5, "{answered:?}");
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let server = Server::start_with(&add(), &["--client-control", "true"]);
    let own = format!("http://{}", server.address());
    for (origin, status) in [("https://evil.example", 403), ("null", 403), (own.as_str(), 200)] {
        for path in ["/v2/logging", "/v2/trace/setting", "/v2/repository/models/add/unload"] {
            let reply = server.post(path, &[("origin", origin)], b"{}");
            assert_eq!(reply.status, status, "{origin} {path}");
        }
    }
}

#[test]
fn clients_load_and_unload_where_they_may() {
    let server = Server::start_with(&add(), &["--client-control", "true"]);
    let control =
        |what: &str| post(&server, &format!("/v2/repository/models/add/{what}"), &json!({}));
    let index = || post(&server, "/v2/repository/index", &json!({})).json()[0].clone();
    assert_eq!(server.infer("add", &add_request()).status, 200);
    let unloaded = control("unload");
    assert_eq!((unloaded.status, unloaded.body.len()), (200, 0));
    assert_eq!(server.get("/v2/models/add/ready").json(), json!({"name": "add", "ready": false}));
    assert_eq!(index()["state"], "UNAVAILABLE");
    let text = server.infer("add", &add_request()).error(503, "not-ready");
    insta::assert_snapshot!(text, @"model `add` is not ready: it was unloaded by a client");
    assert_eq!(control("load").status, 200);
    assert_eq!(index()["state"], "READY");
    assert_eq!(server.infer("add", &add_request()).status, 200);
    let config = json!({"parameters": {"config": "{}"}});
    post(&server, "/v2/repository/models/add/load", &config).error(501, "unsupported");
}

#[test]
fn clients_do_not_run_the_server_unless_they_may() {
    let server = Server::start(&add());
    for path in [
        "/v2/repository/models/add/load",
        "/v2/repository/models/add/unload",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/add/trace/setting",
    ] {
        let text = post(&server, path, &json!({})).error(403, "forbidden");
        assert!(text.contains("client-control"), "{text}");
    }
    assert_eq!(server.get("/v2/logging").json()["log_info"], json!(true));
    assert_eq!(server.get("/v2/trace/setting").json()["trace_level"], json!(["OFF"]));
    assert_eq!(server.infer("add", &add_request()).status, 200);
}

#[test]
fn traces_and_levels_are_in_the_log() {
    let server = Server::start_with(&add(), &["--client-control", "true"]);
    let ask = |id: &str| {
        let mut request = add_request();
        request["id"] = id.into();
        assert_eq!(server.infer("add", &request).status, 200);
    };
    ask("before");
    let on = json!({"trace_level": ["TIMESTAMPS"], "trace_rate": 1});
    let settings = post(&server, "/v2/models/add/trace/setting", &on).json();
    assert_eq!(settings["trace_rate"], "1");
    ask("traced");
    assert_eq!(post(&server, "/v2/logging", &json!({"log_info": false})).status, 200);
    ask("silent");
    let verbose = json!({"log_verbose_level": 2, "log_info": true});
    assert_eq!(post(&server, "/v2/logging", &verbose).json()["log_verbose_level"], 2);
    // A settings file of Triton's must not become a file here.
    post(&server, "/v2/logging", &json!({"log_file": "/tmp/x"})).error(400, "invalid-input");
    post(&server, "/v2/trace/setting", &json!({"trace_file": "/tmp/x"}))
        .error(400, "invalid-input");
    let (_, log) = server.stop();
    assert!(log.contains("id=\"traced\""), "{log}");
    assert!(log.contains(" bytes_in=32 bytes_out=16") && log.contains(" guest_cpu_us="), "{log}");
    assert!(!log.contains("before") && !log.contains("silent"), "{log}");
}

#[test]
fn a_text_is_generated_from() {
    let folder = scratch();
    let text = identity_bundle(folder.path(), "text", "in out BYTES -1");
    let server = Server::start(&[text, fixture("models/add.onnx")]);
    let ask = |body: Value| post(&server, "/v2/models/text/generate", &body);
    let reply =
        ask(json!({"text_input": "héllo", "id": 7, "parameters": {"top": 1}, "stream": false}));
    assert_eq!(
        reply.json(),
        json!({"id": "7", "model_name": "text", "model_version": "1", "text_output": "héllo"})
    );
    assert!(reply.header("server-timing").is_some());
    assert_eq!(ask(json!({"in": "a"})).json()["text_output"], "a");
    let path = "/v2/models/text/versions/1/generate_stream";
    let stream = post(&server, path, &json!({"text_input": "a"}));
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    insta::assert_snapshot!(String::from_utf8_lossy(&stream.body), @r#"data: {"model_name":"text","model_version":"1","text_output":"a"}"#);
    insta::assert_snapshot!(ask(json!({})).error(400, "invalid-input"), @"text_input is missing: expected a string");
    let twice = ask(json!({"text_input": "a", "in": "b"}));
    insta::assert_snapshot!(twice.error(400, "invalid-input"), @"text_input came twice, once as `in`");
    let many: serde_json::Map<_, _> = (0..2000).map(|n| (n.to_string(), json!(0))).collect();
    assert!(ask(json!({"text_input": "a", "parameters": many})).status == 400);
    insta::assert_snapshot!(ask(json!({"text_input": ["a"]})).error(400, "invalid-input"), @"the body is no request to generate: text_input: expected a string, got a list at line 1 column 20");
    insta::assert_snapshot!(ask(json!([])).error(400, "invalid-input"), @"the body is no request to generate: invalid type: sequence, expected an object at line 1 column 2");
    let other = post(&server, "/v2/models/add/generate_stream", &json!({"text_input": "a"}));
    insta::assert_snapshot!(other.error(501, "unsupported"), @"model `add` cannot generate: expected one BYTES input of one element, it takes `a` FP32 [1, 4], `b` FP32 [1, 4]");
}

#[test]
fn grpc_has_an_address_of_its_own_where_it_is_given_one() {
    let server = Server::start_with(&add(), &["--grpc-listen", "127.0.0.1:0"]);
    let line = server.next_line();
    let address = line.strip_prefix("gRPC on ").expect("an address");
    for grpc in [Grpc::connect(&server), Grpc::connect_to(address)] {
        let live =
            grpc.call::<proto::ServerLiveResponse>("ServerLive", &proto::ServerLiveRequest {});
        assert!(live.expect("an answer").live);
    }
}

#[test]
fn minilm_gives_the_reference_s_vectors() {
    let checked = wisp().arg("check").arg(model("minilm")).output().expect("wisp runs");
    let report = succeeded(&checked);
    assert!(report.contains("golden/sentences.json: passed"), "{report}");
}

/// Cosine of the angle between two vectors of length 1.
fn likeness(one: &Value, other: &Value) -> f64 {
    let floats = |vector: &Value| -> Vec<f64> {
        vector.as_array().expect("a list").iter().filter_map(Value::as_f64).collect()
    };
    floats(one).iter().zip(floats(other)).map(|(one, other)| one * other).sum()
}

#[test]
fn sentences_become_vectors() {
    let server = Server::start(&[model("minilm"), fixture("models/add.onnx")]);
    let ask = |body: Value| post(&server, "/v1/embeddings", &body);
    let texts = ["A cat sits on the mat.", "There is a kitten on the rug.", "Stock prices fell."];
    let reply = ask(json!({"model": "minilm", "input": texts})).json();
    assert_eq!((&reply["object"], &reply["model"]), (&json!("list"), &json!("minilm")));
    let vector = |index: usize| &reply["data"][index]["embedding"];
    assert_eq!(vector(0).as_array().map(Vec::len), Some(384));
    assert!((likeness(vector(0), vector(0)) - 1.0).abs() < 1e-5);
    assert!(likeness(vector(0), vector(1)) > likeness(vector(0), vector(2)) + 0.2);
    assert_eq!(reply["usage"], json!({"prompt_tokens": 25, "total_tokens": 25}));
    // The same model through the protocol's own door, and by OpenAI's tokens.
    let text = json!({"name": "text", "datatype": "BYTES", "shape": [1], "data": [texts[2]]});
    let direct = server.infer("minilm", &json!({"inputs": [text]}));
    assert!((likeness(&direct.output("embedding"), vector(2)) - 1.0).abs() < 1e-5);
    let tokens = ask(json!({"model": "minilm", "input": [[4937], [4937, 4937]]})).json();
    let cat = ask(json!({"model": "minilm", "input": "cat", "encoding_format": "float"})).json();
    assert!(
        (likeness(&tokens["data"][0]["embedding"], &cat["data"][0]["embedding"]) - 1.0).abs()
            < 1e-5
    );
    assert_eq!(tokens["usage"]["total_tokens"], 7);
    let base64 =
        ask(json!({"model": "minilm", "input": "cat", "encoding_format": "base64"})).json();
    assert_eq!(base64["data"][0]["embedding"].as_str().map(str::len), Some(384 * 4 / 3 * 4));

    let models = server.get("/v1/models").json();
    assert_eq!(models["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(server.get("/v1/models/minilm").json()["id"], "minilm");
    let mut errors = String::new();
    for reply in [
        ask(json!({"model": "nobody", "input": "a"})),
        ask(json!({"model": "add", "input": "a"})),
        ask(json!({"model": "minilm", "input": ""})),
        ask(json!({"model": "minilm", "input": [1, "a"]})),
        ask(json!({"model": "minilm", "input": [30522]})),
        ask(json!({"model": "minilm", "input": "a", "dimensions": 100})),
        ask(json!({"model": "minilm", "input": "a", "encoding_format": "morse"})),
        ask(json!({"model": "minilm"})),
        ask(json!(["minilm", "a"])),
        server.get("/v1/models/add"),
        server.get("/v1/models/%ff"),
        server.get("/v1/files"),
        server.get("/v1/embeddings"),
    ] {
        errors += &format!("{} {}\n", reply.status, reply.json()["error"]);
    }
    insta::assert_snapshot!(errors, @r#"
    404 {"code":"model_not_found","message":"unknown model `nobody`","param":null,"type":"invalid_request_error"}
    400 {"code":null,"message":"model `add` is not for text embedding","param":null,"type":"invalid_request_error"}
    400 {"code":null,"message":"the body is no embedding request: input: text 0 is empty at line 1 column 11","param":"input","type":"invalid_request_error"}
    400 {"code":null,"message":"the body is no embedding request: input: expected texts only, or tokens only at line 1 column 16","param":"input","type":"invalid_request_error"}
    400 {"code":null,"message":"input `text`: element 0 has token id 30522, expected ids below 30522","param":null,"type":"invalid_request_error"}
    400 {"code":null,"message":"dimensions: model `minilm` gives 384 of them, got 100","param":"dimensions","type":"invalid_request_error"}
    400 {"code":null,"message":"encoding_format: expected float or base64, got `morse`","param":"encoding_format","type":"invalid_request_error"}
    400 {"code":null,"message":"the body is no embedding request: missing field `input` at line 1 column 18","param":null,"type":"invalid_request_error"}
    400 {"code":null,"message":"the body is no embedding request: it is a list","param":null,"type":"invalid_request_error"}
    404 {"code":"model_not_found","message":"unknown model `add`","param":null,"type":"invalid_request_error"}
    400 {"code":null,"message":"Invalid URL: Invalid UTF-8 in `model`","param":null,"type":"invalid_request_error"}
    404 {"code":"unknown-path","message":"nothing is served at `/v1/files`","param":null,"type":"invalid_request_error"}
    405 {"code":"wrong-method","message":"method GET is not allowed at `/v1/embeddings`","param":null,"type":"invalid_request_error"}
    "#);
}
