//! Over REST: bodies, headers and chunks that lie.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::{Value, json};

use super::{assert_unharmed, deflate, good, gzip, serve, zeros};
use crate::support::forms::{Client, read_rest};

const PATH: &str = "/v2/models/grid/infer";
const JSON_LENGTH: &str = "Inference-Header-Content-Length";

/// Its name, what it sends, and the status and kind of its answer.
type Attack<'a> = (&'a str, Vec<(&'a str, String)>, Vec<u8>, (u16, &'a str));

const BAD_REQUEST: (u16, &str) = (400, "invalid-input");
const TOO_LARGE: (u16, &str) = (413, "too-large");

#[track_caller]
fn assert_answers(client: &Client, attacks: impl IntoIterator<Item = Attack<'static>>) {
    for (attack, headers, body, (status, kind)) in attacks {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let reply = client.server.post(PATH, &headers, &body);
        let text = String::from_utf8_lossy(&reply.body);
        assert_eq!(
            (reply.status, reply.header("wisp-error")),
            (status, Some(kind)),
            "{attack}: {text}"
        );
        reply.error(status, kind);
        assert_unharmed(client, attack);
    }
}

/// A good body of JSON.
fn good_json() -> Vec<u8> {
    good().json().to_string().into_bytes()
}

/// A good body of JSON and a tensor, and the length of its JSON.
fn good_binary() -> (usize, Vec<u8>) {
    let (head, tensors) = good().binary();
    let head = head.to_string();
    (head.len(), [head.as_bytes(), &tensors].concat())
}

#[test]
fn json_ten_thousand_deep() {
    let (_folder, client) = serve();
    let lists = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let x = r#""name":"x","datatype":"FP32""#;
    for deep in [lists, objects] {
        assert_answers(
            &client,
            [
                ("deep data", format!(r#"{{"inputs":[{{{x},"shape":[1,1],"data":{deep}}}]}}"#)),
                ("a deep shape", format!(r#"{{"inputs":[{{{x},"shape":{deep},"data":[1]}}]}}"#)),
                ("deep inputs", format!(r#"{{"inputs":{deep}}}"#)),
                ("deep outputs", format!(r#"{{"inputs":[],"outputs":{deep}}}"#)),
                ("a deep id", format!(r#"{{"inputs":[],"id":{deep}}}"#)),
                ("a deep body", deep.clone()),
                ("a deep body that breaks off", deep[..deep.len() / 2].to_owned()),
                (
                    "a deep field that nobody knows",
                    format!(r#"{{"unknown":{deep},"inputs":[{{{x},"shape":[1,1],"data":[1]}}]}}"#),
                ),
                (
                    "a deep parameter",
                    format!(
                        r#"{{"parameters":{{"p":{deep}}},"inputs":[{{{x},"shape":[1,1],"data":[1]}}]}}"#
                    ),
                ),
                (
                    "a deep parameter of an input",
                    format!(
                        r#"{{"inputs":[{{{x},"shape":[1,1],"parameters":{{"p":{deep}}},"data":[1]}}]}}"#
                    ),
                ),
            ]
            .map(|(attack, body)| (attack, vec![], body.into_bytes(), BAD_REQUEST)),
        );
    }
}

#[test]
fn json_that_says_things_twice_or_not_at_all() {
    let (_folder, client) = serve();
    assert_answers(
        &client,
        [
            ("inputs twice", r#"{"inputs":[],"inputs":[]}"#),
            ("a name twice", r#"{"inputs":[{"name":"x","name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}"#),
            ("data twice", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1],"data":[2]}]}"#),
            ("a shape past 2^64", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[18446744073709551616,1],"data":[]}]}"#),
            ("a shape past 2^63", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[9223372036854775808,1],"data":[]}]}"#),
            ("a shape of fractions", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[0.5,2],"data":[1]}]}"#),
            ("a shape of texts", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":["1","1"],"data":[1]}]}"#),
            ("no shape", r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}"#),
            ("two bodies", r#"{"inputs":[]}{"inputs":[]}"#),
        ]
        .map(|(attack, body)| (attack, vec![], body.as_bytes().to_vec(), BAD_REQUEST)),
    );
}

#[test]
fn header_lengths_that_lie() {
    let (_folder, client) = serve();
    let (length, body) = good_binary();
    let of =
        |attack, value: String| (attack, vec![(JSON_LENGTH, value)], body.clone(), BAD_REQUEST);
    assert_answers(
        &client,
        [
            of("a length past the body", (body.len() + 1).to_string()),
            of("a length before the JSON's end", (length - 1).to_string()),
            of("a length behind the JSON's end", (length + 1).to_string()),
            of("the whole body's length", body.len().to_string()),
            of("a negative length", "-1".to_owned()),
            of("a length past 2^64", "9".repeat(20)),
            of("a length of 60,000 digits", "9".repeat(60_000)),
            of("a length with a sign", format!("+{length}")),
            of("a length in hexadecimal", format!("{length:#x}")),
            of("a fraction", format!("{length}.0")),
            of("two lengths in one", format!("{length}, {length}")),
            of("no number", "x".to_owned()),
            of("nothing", String::new()),
        ],
    );
    let twice = vec![(JSON_LENGTH, length.to_string()); 2];
    assert_answers(&client, [("a length twice", twice, body, BAD_REQUEST)]);
}

#[test]
fn binary_sizes_that_lie() {
    let (_folder, client) = serve();
    let sized = |size: Value, with: Value| {
        let (mut head, tensors) = good().binary();
        head["inputs"][0]["parameters"]["binary_data_size"] = size;
        for (field, value) in with.as_object().into_iter().flatten() {
            head["inputs"][0][field] = value.clone();
        }
        let head = head.to_string();
        (head.len(), [head.as_bytes(), &tensors].concat())
    };
    for (attack, size) in [
        ("a size past the body", json!(9)),
        ("a size before the tensor's end", json!(7)),
        ("no size at all", json!(0)),
        ("a negative size", json!(-8)),
        ("the greatest size", json!(u64::MAX)),
        ("a size that wraps", json!(u64::MAX - 7)),
        ("a size of 2^63", json!(1u64 << 63)),
        ("a fraction", json!(8.5)),
        ("a huge number", json!(1e300)),
        ("a text", json!("8")),
        ("true", json!(true)),
        ("a list", json!([8])),
    ] {
        let (length, body) = sized(size, json!({}));
        let headers = vec![(JSON_LENGTH, length.to_string())];
        assert_answers(&client, [(attack, headers, body, BAD_REQUEST)]);
    }
    let (length, body) = sized(json!(8), json!({"data": [1, 2]}));
    let headers = vec![(JSON_LENGTH, length.to_string())];
    let (_, no_header) = good_binary();
    assert_answers(
        &client,
        [
            ("data in both places", headers, body, BAD_REQUEST),
            ("a size without the header", vec![], no_header, BAD_REQUEST),
        ],
    );
}

#[test]
fn compressed_bodies() {
    let (_folder, client) = serve();
    let whole = gzip(&good_json()[..]);
    let mut corrupt = whole.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 0xff;
    let half = whole[..middle].to_vec();
    let coded = |attack, coding: &str, body, expected| {
        (attack, vec![("content-encoding", coding.to_owned())], body, expected)
    };
    assert_answers(
        &client,
        [
            coded("a bomb of 64 MB", "gzip", gzip(zeros()), TOO_LARGE),
            coded("a deflated bomb", "deflate", deflate(zeros()), TOO_LARGE),
            coded("a bomb in a bomb", "gzip", gzip(&gzip(zeros())[..]), BAD_REQUEST),
            coded("two at once", "gzip, gzip", gzip(&whole[..]), BAD_REQUEST),
            coded("damaged in the middle", "gzip", corrupt, BAD_REQUEST),
            coded("half of it", "gzip", half, BAD_REQUEST),
            coded("not compressed", "gzip", good_json(), BAD_REQUEST),
            coded("not deflated", "deflate", good_json(), BAD_REQUEST),
            coded("nothing", "gzip", vec![], BAD_REQUEST),
            coded("more behind its end", "gzip", [&whole[..], b"more"].concat(), BAD_REQUEST),
            coded("an unknown coding", "br", whole.clone(), BAD_REQUEST),
        ],
    );
    // What is compressed as it should be is read, its header's length too.
    let (length, body) = good_binary();
    for (coding, body) in [("gzip", gzip(&body[..])), ("deflate", deflate(&body[..]))] {
        let length = length.to_string();
        let headers = [("content-encoding", coding), (JSON_LENGTH, length.as_str())];
        let reply = client.server.post(PATH, &headers, &body);
        assert!(read_rest(&reply).is_ok(), "{reply:?}");
    }
}

#[test]
fn bodies_over_the_limit() {
    let (_folder, client) = serve();
    let over = |bytes: usize| [good_json(), vec![b' '; bytes]].concat();
    let (length, binary) = good_binary();
    let binary = [binary, vec![0; 1 << 20]].concat();
    assert_answers(
        &client,
        [
            ("a byte over", vec![], over((1 << 20) + 1 - good_json().len()), TOO_LARGE),
            ("15 MB over", vec![], over(15 << 20), TOO_LARGE),
            ("tensors over", vec![(JSON_LENGTH, length.to_string())], binary, TOO_LARGE),
        ],
    );
    let full = over((1 << 20) - good_json().len());
    assert_eq!(client.server.post(PATH, &[], &full).status, 200);
}

/// What the server answers to these bytes on a connection of their own.
fn exchange(client: &Client, request: &[&[u8]], is_cut_off: bool) -> String {
    let mut stream = TcpStream::connect(client.server.address()).expect("it listens");
    // The server may answer and close before all of it is sent.
    let _ = stream.write_all(&request.concat());
    if is_cut_off {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(headers: &str) -> String {
    format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// What is held of a body is its bytes, in however many chunks they come.
#[test]
fn chunks_of_one_byte() {
    let (_folder, client) = serve();
    let head = head(CHUNKED);
    let chunk = |byte: &u8| [b'1', b'\r', b'\n', *byte, b'\r', b'\n'];
    let padded = [good_json(), vec![b' '; 100_000]].concat();
    let chunks: Vec<u8> = padded.iter().flat_map(chunk).collect();
    let answer = exchange(&client, &[head.as_bytes(), &chunks, b"0\r\n\r\n"], false);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_unharmed(&client, "chunks of one byte");

    let flood = b"1\r\n \r\n".repeat((1 << 20) + 1);
    let answer = exchange(&client, &[head.as_bytes(), &flood, b"0\r\n\r\n"], false);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("wisp-error: too-large"), "{answer}");
    assert_unharmed(&client, "a flood of chunks");
}

#[test]
fn framing_that_lies() {
    let (_folder, client) = serve();
    let good = String::from_utf8(good_json()).expect("UTF-8");
    let length = good.len();
    let extension = format!("1;{}\r\n \r\n", "a".repeat(1000)).repeat(100);
    let trailers = format!("{length:x}\r\n{good}\r\n0\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    for (attack, headers, body) in [
        ("a size that is no number", CHUNKED, "zz\r\n \r\n0\r\n\r\n"),
        ("a negative size", CHUNKED, "-1\r\n \r\n0\r\n\r\n"),
        ("a size past 2^64", CHUNKED, "fffffffffffffffff\r\n \r\n0\r\n\r\n"),
        ("a chunk that is cut off", CHUNKED, "ffffffffffffffff\r\n {"),
        ("no last chunk", CHUNKED, "1\r\n{\r\n"),
        ("a flood of extensions", CHUNKED, &extension),
        ("a flood of trailers", CHUNKED, &trailers),
        ("a longer body promised", "Content-Length: 1000\r\n", &good),
        ("4 GiB promised", "Content-Length: 4294967296\r\n", &good),
        ("2^64 bytes promised", "Content-Length: 18446744073709551616\r\n", &good),
        ("a negative length", "Content-Length: -1\r\n", &good),
        ("two lengths", "Content-Length: 2\r\nContent-Length: 3\r\n", &good),
        ("an unknown transfer coding", "Transfer-Encoding: gzip\r\n", &good),
    ] {
        let answer = exchange(&client, &[head(headers).as_bytes(), body.as_bytes()], true);
        // A connection may be reset before its answer is read.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{attack}: {answer}");
        assert_unharmed(&client, attack);
    }
    let answer = exchange(&client, &[head(&"a: b\r\n".repeat(200)).as_bytes()], false);
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    exchange(&client, &[head(&"a: b\r\n".repeat(100_000)).as_bytes()], false);
    assert_unharmed(&client, "a flood of headers");
}
