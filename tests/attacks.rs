//! The attacks that reference servers fell to: each is refused with its own error, and the
//! next request is answered.

mod grpc;
mod rest;

use std::io::{Read, copy, repeat};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::support::forms::{Client, Form, Infer, Tensor, bytes_elements, bytes_of};
use crate::support::{identity_bundle, scratch};

/// `grid` takes `x` FP32 [-1, -1], `words` takes `x` BYTES [-1]; bodies of up to 1 MiB.
fn serve() -> (tempfile::TempDir, Client) {
    let folder = scratch();
    let bundles = [
        identity_bundle(folder.path(), "grid", "x y FP32 -1,-1"),
        identity_bundle(folder.path(), "words", "x y BYTES -1"),
    ];
    let client = Client::start(&bundles, &["--body-limit-mib", "1"]);
    assert_unharmed(&client, "the start");
    (folder, client)
}

/// `elements` values, whatever the shape says.
fn grid(shape: &[i64], elements: usize) -> Tensor {
    Tensor::new("x", "FP32", shape, &bytes_of(&vec![0.5; elements], f32::to_le_bytes))
}

fn good() -> Infer {
    Infer::new("grid", &[grid(&[1, 2], 2)])
}

#[track_caller]
fn assert_unharmed(client: &Client, after: &str) {
    assert_eq!(client.server.get("/v2/health/live").status, 200, "after {after}");
    for form in [Form::Json, Form::Binary, Form::Raw] {
        let answer = client.ask(form, &good());
        let outputs = answer.unwrap_or_else(|error| panic!("after {after}: {error:?}")).outputs;
        assert_eq!(outputs, [grid(&[1, 2], 2).named("y")], "after {after}");
    }
}

#[track_caller]
fn assert_refused(client: &Client, forms: &[Form], attack: &str, infer: &Infer) {
    for form in forms {
        let refused = client.ask(*form, infer).expect_err(attack);
        assert_eq!(
            (refused.code.as_str(), refused.kind.as_str()),
            (form.bad_request(), "invalid-input"),
            "{attack} as {form:?}: {}",
            refused.text
        );
        assert_unharmed(client, attack);
    }
}

/// 64 MiB, of which little is left when they are compressed.
fn zeros() -> impl Read {
    repeat(0).take(64 << 20)
}

fn gzip(mut content: impl Read) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    copy(&mut content, &mut encoder).expect("memory");
    encoder.finish().expect("memory")
}

fn deflate(mut content: impl Read) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    copy(&mut content, &mut encoder).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn shapes_that_lie() {
    let (_folder, client) = serve();
    for (attack, shape, elements) in [
        ("a negative dimension", &[-1, 4][..], 4),
        ("two negative dimensions, whose product is right", &[-2, -2], 4),
        ("the least dimension", &[i64::MIN, 1], 0),
        ("the greatest dimension", &[i64::MAX, 1], 4),
        ("a product past 2^64", &[1 << 62, 1 << 62], 4),
        ("a product that wraps to 0", &[1 << 32, 1 << 32], 0),
        ("a product that wraps to 4", &[(1 << 62) + 1, 4], 4),
        ("bytes that wrap to 0", &[1 << 62, 1], 0),
        ("bytes that wrap to 16", &[(1 << 62) + 4, 1], 4),
        ("more elements than the shape has", &[2, 2], 5),
        ("fewer elements than the shape has", &[2, 2], 3),
        ("no elements for a shape that has some", &[2, 2], 0),
        ("elements for a shape that has none", &[0, 4], 4),
        ("a dimension too few", &[4], 4),
        ("a dimension too many", &[1, 2, 2], 4),
        ("no dimensions", &[], 1),
        ("ten thousand dimensions", &[1; 10_000], 1),
    ] {
        let infer = Infer::new("grid", &[grid(shape, elements)]);
        assert_refused(&client, &Form::ALL, attack, &infer);
    }
    for (attack, bytes) in [("a byte too few", 15), ("a byte too many", 17)] {
        let x = Tensor::new("x", "FP32", &[2, 2], &vec![0; bytes]);
        assert_refused(&client, &Form::BYTES, attack, &Infer::new("grid", &[x]));
    }
}

#[test]
fn inputs_and_outputs_that_are_not_the_model_s() {
    let (_folder, client) = serve();
    let x = grid(&[1, 2], 2);
    let of_datatype = |datatype: &str| Tensor { datatype: datatype.to_owned(), ..x.clone() };
    for (attack, inputs) in [
        ("no input", vec![]),
        ("an input twice", vec![x.clone(), x.clone()]),
        ("an input a thousand times", vec![x.clone(); 1000]),
        ("an input too many", vec![x.clone(), x.named("z")]),
        ("another input", vec![x.named("z")]),
        ("an input without a name", vec![x.named("")]),
        ("a name of 100,000 bytes", vec![x.named(&"é".repeat(50_000))]),
        ("a name that would forge headers", vec![x.named("x\r\nwisp-error: none\r\n\0\u{1b}[2J")]),
        ("another datatype", vec![of_datatype("INT32")]),
        ("no datatype", vec![of_datatype("")]),
        ("a datatype in small letters", vec![of_datatype("fp32")]),
        ("a datatype that ends early", vec![of_datatype("FP32\0")]),
    ] {
        assert_refused(&client, &Form::ALL, attack, &Infer::new("grid", &inputs));
    }
    for (attack, outputs) in [
        ("an output twice", vec!["y", "y"]),
        ("an output ten thousand times", vec!["y"; 10_000]),
        ("another output", vec!["z"]),
        ("an output too many", vec!["y", "z"]),
        ("an output without a name", vec![""]),
    ] {
        assert_refused(&client, &Form::ALL, attack, &good().wanting(&outputs));
    }
}

#[test]
fn bytes_elements_that_lie() {
    let (_folder, client) = serve();
    let whole = bytes_elements(&["tiger", "cat"]);
    let lying = |length: u32| [&length.to_le_bytes()[..], b"tiger"].concat();
    for (attack, elements, data) in [
        ("a length past the end", 1, lying(6)),
        ("a length before the end", 1, lying(4)),
        ("the greatest length", 1, lying(u32::MAX)),
        ("a length that is signed", 1, lying(1 << 31)),
        ("half a length", 1, vec![0, 0]),
        ("half a length behind an element", 2, [&whole[..], &[0; 3]].concat()),
        ("no length", 1, vec![]),
        ("more elements than the shape has", 1, whole.clone()),
        ("fewer elements than the shape has", 3, whole.clone()),
        ("far fewer elements than the shape has", i64::MAX, whole.clone()),
        ("a second element cut off", 2, whole[..whole.len() - 1].to_vec()),
    ] {
        let x = Tensor::new("x", "BYTES", &[elements], &data);
        assert_refused(&client, &Form::BYTES, attack, &Infer::new("words", &[x]));
    }
    for elements in [1, 3] {
        let x = Tensor::new("x", "BYTES", &[elements], &whole);
        assert_refused(&client, &Form::ALL, "a count that lies", &Infer::new("words", &[x]));
    }
}
