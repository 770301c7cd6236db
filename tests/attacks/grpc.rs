//! Over gRPC: messages and frames that lie.

use bytes::Bytes;
use prost::Message;
use tonic::Code;

use super::{assert_unharmed, deflate, good, gzip, serve, zeros};
use crate::support::grpc::frame;
use crate::support::grpc::proto::{InferTensorContents, ModelInferRequest};

#[test]
fn contents_that_contradict_each_other() {
    let (_folder, client) = serve();
    let with = |change: fn(&mut ModelInferRequest)| {
        let mut request = good().raw();
        change(&mut request);
        request
    };
    let typed = |change: fn(&mut InferTensorContents)| {
        let mut request = good().typed();
        change(request.inputs[0].contents.as_mut().expect("typed contents"));
        request
    };
    for (attack, request) in [
        ("no contents at all", with(|request| request.raw_input_contents.clear())),
        (
            "raw contents too many",
            with(|request| request.raw_input_contents.push(Bytes::from_static(&[0; 8]))),
        ),
        (
            "a flood of raw contents",
            with(|request| {
                request.raw_input_contents = vec![Bytes::new(); 100_000];
            }),
        ),
        ("raw contents for no input", with(|request| request.inputs.clear())),
        (
            "raw and typed contents",
            with(|request| {
                request.inputs = good().typed().inputs;
            }),
        ),
        ("contents of two fields", typed(|contents| contents.fp64_contents = vec![0.5; 2])),
        (
            "contents of another field",
            typed(|contents| {
                contents.fp32_contents.clear();
                contents.int_contents = vec![1; 2];
            }),
        ),
        ("texts for numbers", typed(|contents| contents.bytes_contents = vec![vec![0; 8]])),
    ] {
        let refused = client.ask_grpc(&request).expect_err(attack);
        assert_eq!(
            (refused.code.as_str(), refused.kind.as_str()),
            ("InvalidArgument", "invalid-input"),
            "{attack}: {}",
            refused.text
        );
        assert_unharmed(&client, attack);
    }
}

#[test]
fn frames_that_lie() {
    let (_folder, client) = serve();
    let good = good().raw().encode_to_vec();
    let framed = |length: usize| {
        let mut framed = frame(0, &good);
        framed[1..5].copy_from_slice(&(length as u32).to_be_bytes());
        framed
    };
    let gzipped = gzip(&good[..]);
    let mut large = good.clone();
    // A field that nobody knows, of 16 MiB.
    large.extend(b"\xc2\x3e\x80\x80\x80\x08");
    large.resize(large.len() + (16 << 20), 0);
    let too_much = &[Code::OutOfRange, Code::ResourceExhausted][..];
    for (attack, coding, body, codes) in [
        ("no message", "identity", vec![], &[Code::Internal][..]),
        ("half a length", "identity", vec![0, 0], &[Code::Internal]),
        ("a length past the end", "identity", framed(good.len() + 1), &[Code::Internal]),
        ("a length before the end", "identity", framed(good.len() - 1), &[Code::Internal]),
        ("4 GiB promised", "identity", framed(u32::MAX as usize), too_much),
        ("a body over the limit", "identity", frame(0, &large), too_much),
        ("a flag that is none", "identity", frame(7, &good), &[Code::Internal]),
        ("compressed in no way", "identity", frame(1, &gzipped), &[Code::Internal]),
        (
            "more behind its end",
            "identity",
            [frame(0, &good), vec![0xff; 3]].concat(),
            &[Code::Internal],
        ),
        ("not compressed", "gzip", frame(1, &good), &[Code::Internal]),
        ("half of it", "gzip", frame(1, &gzipped[..gzipped.len() / 2]), &[Code::Internal]),
        ("an unknown coding", "br", frame(1, &gzipped), &[Code::Unimplemented]),
        ("a bomb of 64 MB", "gzip", frame(1, &gzip(zeros())), too_much),
        ("a deflated bomb", "deflate", frame(1, &deflate(zeros())), too_much),
    ] {
        let answer = client.grpc.send("ModelInfer", &[("grpc-encoding", coding)], body);
        let code = answer.expect_err(attack).code();
        assert!(codes.contains(&code), "{attack}: {code:?}");
        assert_unharmed(&client, attack);
    }
    // What is compressed as it should be is read.
    let answer = client.grpc.send("ModelInfer", &[("grpc-encoding", "gzip")], frame(1, &gzipped));
    assert!(answer.is_ok(), "{answer:?}");
}

/// gRPC's own code for a message that cannot be read is INTERNAL.
#[test]
fn messages_that_are_no_protobuf() {
    let (_folder, client) = serve();
    for (attack, message) in [
        ("noise", &[0xff; 40][..]),
        ("a length past the end", b"\x0a\xff\xff\xff\xff\x0f"),
        ("a length without a text", b"\x0a"),
        ("a number without an end", &[0x80; 11]),
        ("a field of number 0", &[0, 0]),
        ("a field of another type", b"\x08\x01"),
        ("a name that is not UTF-8", b"\x0a\x02\xff\xfe"),
        ("an input that is cut off", b"\x2a\x7f"),
    ] {
        let answer = client.grpc.send("ModelInfer", &[], frame(0, message));
        assert_eq!(answer.expect_err(attack).code(), Code::Internal, "{attack}");
        assert_unharmed(&client, attack);
    }
    // An old form of message, which a decoder reads over: what comes after must be counted, too.
    let deep = b"\xa3\x06".repeat(100_000);
    let hiding = [&b"\xa3\x06\xa4\x06"[..], &b"\x2a\x00".repeat(1_000_000)].concat();
    for (attack, message) in [("groups 100,000 deep", deep), ("a group before inputs", hiding)] {
        let answer = client.grpc.send("ModelInfer", &[], frame(0, &message));
        assert_eq!(answer.expect_err(attack).code(), Code::InvalidArgument, "{attack}");
        assert_unharmed(&client, attack);
    }
}
