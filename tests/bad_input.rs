//! What a wrong request gets: a 4xx that names the field, what was expected and what came.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Server, fixture, model, photo, read};

fn serve() -> Server {
    Server::start_with(
        &[
            fixture("models/add.onnx"),
            fixture("models/echo.onnx"),
            fixture("models/scale.onnx"),
            model("digits"),
        ],
        &["--body-limit-mib", "1"],
    )
}

fn a(shape: Value, data: Value) -> Value {
    json!({"name": "a", "datatype": "FP32", "shape": shape, "data": data})
}

fn good(name: &str) -> Value {
    json!({"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]})
}

/// Posts inputs to `add` and returns the error.
fn refused(server: &Server, inputs: Value) -> String {
    server.infer("add", &json!({ "inputs": inputs })).error(400, "invalid-input")
}

#[test]
fn unknown_things() {
    let server = serve();
    insta::assert_snapshot!(server.infer("nope", &json!({"inputs": []})).error(404, "unknown-model"), @"unknown model `nope`");
    insta::assert_snapshot!(server.get("/v2/models/nope").error(404, "unknown-model"), @"unknown model `nope`");
    insta::assert_snapshot!(server.get("/v2/models/add/versions/7").error(404, "unknown-version"), @"model `add` has no version `7`, it has 1");
    insta::assert_snapshot!(server.get("/v2/models/%ff").error(400, "invalid-input"), @"Invalid URL: Invalid UTF-8 in `model`");
    let gzip = [("content-encoding", "gzip")];
    insta::assert_snapshot!(server.post("/v2/models/add/infer", &gzip, b"x").error(400, "invalid-input"), @"the body is damaged gzip: unexpected end of file");
    insta::assert_snapshot!(server.get("/v2/nope").error(404, "unknown-path"), @"nothing is served at `/v2/nope`");
    insta::assert_snapshot!(server.get("/v2/models/add/infer").error(405, "wrong-method"), @"method GET is not allowed at `/v2/models/add/infer`");
    insta::assert_snapshot!(server.post("/v2", &[], b"").error(405, "wrong-method"), @"method POST is not allowed at `/v2`");
    let body = json!({"inputs": [good("a"), good("b")], "outputs": [{"name": "product"}]});
    insta::assert_snapshot!(server.infer("add", &body).error(400, "invalid-input"), @r#"model `add` has no output `product`, it has ["sum"]"#);
    let body =
        json!({"inputs": [good("a"), good("b")], "outputs": [{"name": "sum"}, {"name": "sum"}]});
    insta::assert_snapshot!(server.infer("add", &body).error(400, "invalid-input"), @"output `sum` is asked for twice");
}

#[test]
fn not_a_request() {
    let server = serve();
    let post =
        |body: &[u8]| server.post("/v2/models/add/infer", &[], body).error(400, "invalid-input");
    insta::assert_snapshot!(post(b"hello"), @"the body is not an inference request: expected a JSON object");
    insta::assert_snapshot!(post(b""), @"the body is not an inference request: EOF while parsing a value at line 1 column 0");
    insta::assert_snapshot!(post(b" [{}]"), @"the body is not an inference request: expected a JSON object");
    insta::assert_snapshot!(post(b"{}"), @"the body is not an inference request: missing field `inputs` at line 1 column 2");
    insta::assert_snapshot!(post(b"{\"inputs\":[]"), @"the body is not an inference request: EOF while parsing an object at line 1 column 12");
    insta::assert_snapshot!(post(b"{\"inputs\":7}"), @"the body is not an inference request: invalid type: integer `7`, expected a sequence at line 1 column 11");
    insta::assert_snapshot!(post(b"\xff\xfe{"), @"the body is not an inference request: expected a JSON object");
    let deep = format!(
        "{{\"inputs\":[{{\"name\":\"a\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":{}1{}}}]}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(post(deep.as_bytes()).contains("recursion limit"));
}

#[test]
fn wrong_inputs() {
    let server = serve();
    insta::assert_snapshot!(refused(&server, json!([])), @"input `a` is missing: expected FP32 [1, 4]");
    insta::assert_snapshot!(refused(&server, json!([good("a")])), @"input `b` is missing: expected FP32 [1, 4]");
    insta::assert_snapshot!(refused(&server, json!([good("a"), good("b"), good("c")])), @r#"unexpected input `c`, the model has ["a", "b"]"#);
    insta::assert_snapshot!(refused(&server, json!([good("a"), good("a"), good("b")])), @"input `a` came twice");
    insta::assert_snapshot!(refused(&server, json!([{"name": "a", "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]}])), @"input `a`: expected datatype FP32, got INT32");
    insta::assert_snapshot!(refused(&server, json!([{"name": "a", "datatype": "FLOAT", "shape": [1, 4], "data": [1, 2, 3, 4]}])), @"input `a`: unknown datatype `FLOAT`");
    insta::assert_snapshot!(refused(&server, json!([{"name": "a", "datatype": "FP16", "shape": [1, 4], "data": [1, 2, 3, 4]}])), @"input `a`: FP16 cannot be sent as JSON: send it as binary tensor data");
    insta::assert_snapshot!(refused(&server, json!([{"name": "a", "datatype": "FP32", "shape": [1, 4]}])), @"input `a`: it has neither `data` nor `parameters.binary_data_size`");
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, 4]), json!(["1", 2, 3, 4]))])), @"input `a`: `data`: expected FP32, got a string at line 1 column 4");
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, 4]), json!([null, 2, 3, 4]))])), @"input `a`: `data`: invalid type: null, expected FP32 or a list of them at line 1 column 5");
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, 4]), json!([1e39, 2, 3, 4]))])), @"input `a`: `data`: expected FP32, got 1e39 at line 1 column 6");
}

#[test]
fn wrong_shapes() {
    let server = serve();
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, 4]), json!([1, 2, 3]))])), @"input `a`: shape [1, 4] of FP32 asks for 16 bytes, got 12");
    insta::assert_snapshot!(refused(&server, json!([a(json!([4]), json!([1, 2, 3, 4]))])), @"input `a`: expected shape [1, 4], got [4]");
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, -4]), json!([1, 2, 3, 4]))])), @"input `a`: shape[1]: expected an integer of 0 or more, got -4");
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, 4.5]), json!([1, 2, 3, 4]))])), @"input `a`: shape[1]: expected an integer of 0 or more, got 4.5");
    insta::assert_snapshot!(refused(&server, json!([a(json!([1, 0]), json!([]))])), @"input `a`: expected shape [1, 4], got [1, 0]");
    let scale = |shape: Value| {
        let input = json!({"name": "x", "datatype": "FP32", "shape": shape, "data": [1, 2, 3, 4]});
        server.infer("scale", &json!({"inputs": [input]})).error(400, "invalid-input")
    };
    insta::assert_snapshot!(scale(json!([1u64 << 62, 4])), @"input `x`: shape [4611686018427387904, 4] has more elements than can be counted");
    insta::assert_snapshot!(scale(json!([1u64 << 61, 4])), @"input `x`: shape [2305843009213693952, 4] of FP32 asks for more than 2^64 bytes, got 16");
    insta::assert_snapshot!(scale(json!([1u64 << 40, 4])), @"input `x`: shape [1099511627776, 4] of FP32 asks for 17592186044416 bytes, got 16");
    insta::assert_snapshot!(scale(json!([1e30, 4])), @"input `x`: shape[0]: expected an integer of 0 or more, got 1e+30");
    insta::assert_snapshot!(scale(json!([0, 4])), @"input `x`: shape [0, 4] of FP32 asks for 0 bytes, got 16");
}

#[test]
fn wrong_binary() {
    let server = serve();
    let post = |header: &str, body: &[u8]| {
        server
            .post("/v2/models/add/infer", &[("Inference-Header-Content-Length", header)], body)
            .error(400, "invalid-input")
    };
    insta::assert_snapshot!(post("9", b"{}"), @"header Inference-Header-Content-Length: expected 0 to 2, the body's length, got `9`");
    insta::assert_snapshot!(post("-1", b"{}"), @"header Inference-Header-Content-Length: expected 0 to 2, the body's length, got `-1`");
    insta::assert_snapshot!(post("x", b"{}"), @"header Inference-Header-Content-Length: expected 0 to 2, the body's length, got `x`");
    let input = |size: Value| {
        json!({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}]}).to_string()
    };
    let sized = |size: Value, tensors: &[u8]| {
        let json = input(size);
        post(&json.len().to_string(), &[json.as_bytes(), tensors].concat())
    };
    insta::assert_snapshot!(sized(json!(17), &[0; 16]), @"input `a`: `binary_data_size`: expected at most the 16 bytes left in the body, got 17");
    insta::assert_snapshot!(sized(json!(-1), &[0; 16]), @"input `a`: `binary_data_size`: expected at most the 16 bytes left in the body, got -1");
    insta::assert_snapshot!(sized(json!(i64::MAX), &[0; 16]), @"input `a`: `binary_data_size`: expected at most the 16 bytes left in the body, got 9223372036854775807");
    insta::assert_snapshot!(sized(json!(12), &[0; 16]), @"4 bytes follow the last binary input");
    insta::assert_snapshot!(sized(json!(12), &[0; 12]), @"input `a`: shape [1, 4] of FP32 asks for 16 bytes, got 12");
    insta::assert_snapshot!(post("0", b"1234"), @"a raw body needs a model of one input, this has 2: send JSON with content type application/json, or binary tensors with Inference-Header-Content-Length");
    let odd =
        server.infer_raw("echo", "application/octet-stream", b"12345").error(400, "invalid-input");
    insta::assert_snapshot!(odd, @"a body of type application/octet-stream is taken as the model's one input: input `x`: FP32 takes 4 bytes an element, got 5 bytes");
}

#[test]
fn wrong_images() {
    let server = serve();
    let post =
        |body: &[u8]| server.infer_raw("digits", "image/jpeg", body).error(400, "invalid-input");
    insta::assert_snapshot!(post(b"just a text, no image"), @"input `image`: expected a JPEG, PNG or WebP image, got 21 bytes that start with 6a75737420612074");
    insta::assert_snapshot!(post(b""), @"input `image`: expected a JPEG, PNG or WebP image, got no bytes");
    insta::assert_snapshot!(post(b"GIF89a\x01\x00\x01\x00\x00\x00\x00"), @"input `image`: expected a JPEG, PNG or WebP image, got Gif");
    let cat = read(&fixture("photos/cat.jpg"));
    assert!(post(&cat[..cat.len() / 2]).starts_with("input `image`: damaged JPEG: "));
    assert!(post(&cat[..300]).starts_with("input `image`: damaged JPEG: "));
    let png = photo("digit.png");
    assert!(post(&png[..png.len() / 2]).starts_with("input `image`: damaged Png: "));

    // The server is none the worse.
    assert_eq!(server.infer_raw("digits", "image/png", &png).strings("label")[0], "3");
}

#[test]
fn wrong_parameters() {
    let server = serve();
    let png = photo("digit.png");
    let ask = |parameters: Value| {
        let head = json!({"parameters": parameters, "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": png.len() + 4}}]}).to_string();
        let body = [head.as_bytes(), &(png.len() as u32).to_le_bytes(), &png].concat();
        server.post(
            "/v2/models/digits/infer",
            &[("Inference-Header-Content-Length", &head.len().to_string())],
            &body,
        )
    };
    insta::assert_snapshot!(ask(json!({"top_k": 0})).error(400, "invalid-input"), @"parameter `top_k`: expected a positive integer, got 0");
    insta::assert_snapshot!(ask(json!({"binary_data_output": 1})).error(400, "invalid-input"), @"parameter `binary_data_output`: expected true or false, got 1");
    assert_eq!(ask(json!({"top_k": 9223372036854775807i64})).strings("label").len(), 10);
}

#[test]
fn a_body_over_the_limit() {
    let server = serve();
    let body = vec![b' '; (1 << 20) + 1];
    insta::assert_snapshot!(server.post("/v2/models/add/infer", &[], &body).error(413, "too-large"), @"the body has more than 1048576 bytes, the limit here");

    // In chunks, so that no length is announced.
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    stream.write_all(b"POST /v2/models/add/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").expect("sent");
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    // The server may answer and close before all of it is sent.
    let _ = (0..17).try_for_each(|_| stream.write_all(&chunk));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(server.get("/v2/health/live").status, 200);
}

#[test]
fn a_body_that_never_comes() {
    let server = Server::start_with(&[fixture("models/add.onnx")], &["--body-timeout-ms", "200"]);
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    stream
        .write_all(b"POST /v2/models/add/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        .expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 408");
}
