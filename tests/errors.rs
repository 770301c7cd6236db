//! Every error that a client of the protocol can meet, as it goes out: HTTP's status and
//! gRPC's code side by side, and the body.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use prost::Message;
use tonic::{Code, Status};

use crate::support::forms::{Client, Infer, Tensor, bytes_elements};
use crate::support::grpc::{frame, kind};
use crate::support::{Reply, Server, fixture, hostile_bundle, scratch};

/// A line: status, kind, code, body. Both protocols must name the same kind, in the same words.
fn line(reply: &Reply, status: Option<Status>) -> String {
    let text = reply.error(reply.status, reply.header("wisp-error").expect("a kind"));
    let named = reply.header("wisp-error").unwrap_or_default();
    let code = status.map_or("-".to_owned(), |status| {
        // Some are refused before they reach the server's own code.
        if !kind(&status).is_empty() {
            assert_eq!((kind(&status), status.message()), (named, text.as_str()));
        }
        format!("{:?}", status.code())
    });
    format!("{} {named} {code} {}\n", reply.status, String::from_utf8_lossy(&reply.body))
}

/// The one input of the hostile guest.
fn order(order: &str) -> Infer {
    Infer::new("hostile", &[Tensor::new("do", "BYTES", &[1], &bytes_elements(&[order]))])
}

fn refused(client: &Client, infer: &Infer) -> Option<Status> {
    Some(client.grpc.call::<()>("ModelInfer", &infer.raw()).expect_err("it is refused"))
}

/// The same request in both protocols.
fn both(client: &Client, infer: &Infer) -> String {
    line(&client.server.infer(&infer.model, &infer.json()), refused(client, infer))
}

fn x(model: &str, datatype: &str, shape: &[i64], data: &[u8]) -> Infer {
    Infer::new(model, &[Tensor::new("x", datatype, shape, data)])
}

#[test]
fn requests_that_are_wrong() {
    let client = Client::start(&[fixture("models/echo.onnx")], &["--body-limit-mib", "1"]);
    let good = x("echo", "FP32", &[1], &[0; 4]);
    let mut table = both(&client, &x("echo", "FP32", &[2], &[0; 4]));
    table += &both(&client, &Infer { model: "nobody".to_owned(), ..good.clone() });

    let path = "/v2/models/echo/versions/7/infer";
    let reply = client.server.post(path, &[], good.json().to_string().as_bytes());
    let mut version = good.raw();
    version.model_version = "7".to_owned();
    let status = client.grpc.call::<()>("ModelInfer", &version).expect_err("it is refused");
    table += &line(&reply, Some(status));

    let status = client.grpc.call::<()>("Nothing", &()).expect_err("it is refused");
    table += &line(&client.server.get("/v2/nothing"), Some(status));
    table += &line(&client.server.get("/v2/models/echo/infer"), None);

    let large = vec![b' '; (1 << 20) + 1];
    let reply = client.server.post("/v2/models/echo/infer", &[], &large);
    // A message may be larger than a body by its names and numbers.
    let status = refused(&client, &x("echo", "FP32", &[1 << 19], &vec![0; 2 << 20]));
    table += &line(&reply, status);
    insta::assert_snapshot!(table, @r#"
    400 invalid-input InvalidArgument {"error":"input `x`: shape [2] of FP32 asks for 8 bytes, got 4"}
    404 unknown-model NotFound {"error":"unknown model `nobody`"}
    404 unknown-version NotFound {"error":"model `echo` has no version `7`, it has 1"}
    404 unknown-path Unimplemented {"error":"nothing is served at `/v2/nothing`"}
    405 wrong-method - {"error":"method GET is not allowed at `/v2/models/echo/infer`"}
    413 too-large OutOfRange {"error":"the body has more than 1048576 bytes, the limit here"}
    "#);
}

#[test]
fn models_and_servers_that_fail() {
    let folder = scratch();
    let limits = "[limits]\nmemory_mib = 64\ndeadline_ms = 1000\n";
    let bundles = [
        hostile_bundle(folder.path(), "hostile", limits),
        hostile_bundle(folder.path(), "broken", "[settings]\nprepare = \"fail\"\n"),
        fixture("models/gather.onnx"),
    ];
    let client = Client::start(&bundles, &[]);
    let mut table = String::new();
    for wanted in ["panic", "grow", "fail", "unsupported", "loop"] {
        table += &both(&client, &order(wanted));
    }
    table += &both(&client, &x("gather", "INT64", &[1], &7i64.to_le_bytes()));
    table += &both(&client, &Infer { model: "broken".to_owned(), ..order("behave") });
    insta::assert_snapshot!(table, @r#"
    500 guest-trap Internal {"error":"the guest of model `hostile` trapped: wasm trap: wasm `unreachable` instruction executed"}
    500 guest-memory Internal {"error":"the guest of model `hostile` needs more than its 64 MiB of memory"}
    500 guest-failed Internal {"error":"the guest of model `hostile` failed: it was told to fail"}
    501 unsupported Unimplemented {"error":"it was told not to"}
    504 deadline DeadlineExceeded {"error":"model `hostile` did not answer within 1s"}
    500 compute Internal {"error":"the graph of model `gather` failed: the engine panicked: index out of bounds: the len is 3 but the index is 7"}
    503 not-ready Unavailable {"error":"model `broken` is not ready: guest: `prepare` failed: it was told to fail"}
    "#);
    let metrics = String::from_utf8(client.server.get("/metrics").body).expect("UTF-8");
    // Once in each protocol.
    let traps = "wisp_guest_traps_total{model=\"hostile\",version=\"1\",trap=\"unreachable\"} 2";
    assert!(metrics.lines().any(|line| line == traps), "{metrics}");
}

/// One runs, one waits: the next is refused.
#[test]
fn overload() {
    let folder = scratch();
    let bundle = hostile_bundle(folder.path(), "hostile", "[limits]\ndeadline_ms = 3000\n");
    let client = Client::start(&[bundle], &["--concurrency", "1", "--queue", "1"]);
    assert_eq!(client.server.infer("hostile", &order("behave").json()).status, 200);
    let table = thread::scope(|scope| {
        let ask = || client.server.infer("hostile", &order("loop").json());
        let loops: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        // Four of them are refused; the others keep their places until the deadline.
        while loops.iter().filter(|request| request.is_finished()).count() < 4 {
            thread::yield_now();
        }
        both(&client, &order("behave"))
    });
    insta::assert_snapshot!(table, @r#"503 overloaded ResourceExhausted {"error":"model `hostile` is overloaded: 1 requests wait already"}"#);
}

/// Bodies that never end take up the room for all bodies.
#[test]
fn no_room_for_another_body() {
    // On a busy machine the eight must not time out before all are read.
    let flags = ["--body-limit-mib", "1", "--body-timeout-ms", "300000"];
    let client = Client::start(&[fixture("models/echo.onnx")], &flags);
    let head = format!(
        "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        1 << 20
    );
    let almost = [head.as_bytes(), &[b' '; (1 << 20) - 1]].concat();
    let hold = || {
        let mut stream = TcpStream::connect(client.server.address()).expect("it listens");
        stream.write_all(&almost).expect("sent");
        stream
    };
    let mut held: Vec<TcpStream> = (0..8).map(|_| hold()).collect();
    // As large as a body may be, so that it finds no room as soon as the eight are read.
    let infer = x("echo", "FP32", &[262_000], &[0; 1_048_000]);
    let (head, tensor) = infer.binary();
    let reply = loop {
        let reply = client.infer_binary("echo", &head, &tensor);
        if reply.status != 200 {
            break reply;
        }
        // One of the eight may have found no room beside this request.
        held.push(hold());
    };
    assert_eq!(reply.header("retry-after"), Some("1"));
    insta::assert_snapshot!(line(&reply, refused(&client, &infer)), @r#"503 no-room ResourceExhausted {"error":"no room for now: too many large bodies are held at a time"}"#);
    drop(held);
}

#[test]
fn a_body_that_breaks_off() {
    let server = Server::start_with(&[fixture("models/echo.onnx")], &["--body-timeout-ms", "100"]);
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    let head = "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: 100\r\n\r\n{{").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let kept = |line: &&str| {
        ["HTTP/1.1 ", "content-type: ", "wisp-error: ", "{"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let kept: Vec<&str> = answer.lines().filter(kept).collect();
    insta::assert_snapshot!(kept.join("\n"), @r#"
    HTTP/1.1 408 Request Timeout
    content-type: application/json
    wisp-error: body-lost
    {"error":"the body did not arrive: it took longer than 100ms"}
    "#);
}

/// What `--client-control` alone allows, and what the admin API's token does.
#[test]
fn what_a_client_may_not() {
    /// The protocol's request to unload a model, as far as it is needed.
    #[derive(Clone, PartialEq, Message)]
    struct Unload {
        #[prost(string, tag = "2")]
        model_name: String,
    }
    let client = Client::start(&[fixture("models/echo.onnx")], &[]);
    let reply = client.server.post("/v2/repository/models/echo/unload", &[], b"");
    let unload = Unload { model_name: "echo".to_owned() }.encode_to_vec();
    let status = client.grpc.send("RepositoryModelUnload", &[], frame(0, &unload));
    let status = status.expect_err("it is refused");
    assert_eq!(status.code(), Code::PermissionDenied);
    let mut table = line(&reply, Some(status));
    table += &line(&unauthorized(scratch().path()), None);
    insta::assert_snapshot!(table, @r#"
    403 forbidden PermissionDenied {"error":"clients may not unload models here: the setting client-control is false"}
    401 unauthorized - {"error":"expected the admin token in the header `Authorization: Bearer …`"}
    "#);
}

fn unauthorized(folder: &Path) -> Reply {
    let token = folder.join("token");
    std::fs::write(&token, "0123456789abcdef-and-more\n").expect("a file");
    let flags = ["--admin-token-file", token.to_str().expect("UTF-8")];
    let server = Server::start_admin(&folder.join("state"), &[], &flags);
    server.admin("GET", "models", &[], b"")
}
