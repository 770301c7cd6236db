//! Clients that go away, send bombs, are slow, or are too many.

use std::io::{ErrorKind, Read, Write, copy, repeat};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::json;

use super::wat::Guest;
use super::yard::Yard;
use crate::support::{fixture, model, photo, scratch};

fn slow_request() -> String {
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [3]});
    json!({"inputs": [input]}).to_string()
}

/// A graph is left between two of its nodes.
#[test]
fn computes_past_the_deadline() {
    let bundles = [fixture("models/matmul_slow.onnx")];
    let yard = Yard::of_bundles(&bundles, &["--deadline-ms", "100"]);
    let reply = yard.beside(|| {
        let path = "/v2/models/matmul_slow/infer";
        let kind = [("content-type", "application/json")];
        yard.server.post(path, &kind, slow_request().as_bytes())
    });
    let text = reply.error(504, "deadline");
    assert_eq!(text, "model `matmul_slow` did not answer within 100ms");
    assert_eq!(yard.failures("matmul_slow", "deadline"), 1);
    yard.stop();
}

#[test]
fn clients_that_go_away_in_mid_compute() {
    let bundles = [fixture("models/matmul_slow.onnx")];
    // One at a time: the next would wait in vain for a turn that is not given back.
    let yard = Yard::of_bundles(&bundles, &["--concurrency", "1"]);
    let body = slow_request();
    let head = format!(
        "POST /v2/models/matmul_slow/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let pending = "nv_inference_pending_request_count";
    let pending = format!("{pending}{{model=\"matmul_slow\",version=\"1\"}}");
    for round in 1..=3 {
        yard.beside(|| {
            let mut stream = TcpStream::connect(yard.server.address()).expect("it listens");
            stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
            // Until it is under way, which it will be for long.
            while yard.gauge(&pending) == 0 {
                thread::yield_now();
            }
            stream.shutdown(Shutdown::Both).expect("shut down");
        });
        yard.await_failures("matmul_slow", "cancelled", round);
    }
    yard.stop();
}

/// A PNG of so many zeros, all of them there.
fn png(side: u32, bits: u8, color: u8, samples: u64) -> Vec<u8> {
    let line = 1 + u64::from(side) * samples * u64::from(bits / 8);
    let head = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[bits, color, 0, 0, 0]].concat();
    let pixels = deflated(line * u64::from(side));
    let chunks = [chunk(b"IHDR", &head), chunk(b"IDAT", &pixels), chunk(b"IEND", b"")];
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
}

fn deflated(zeros: u64) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    copy(&mut repeat(0).take(zeros), &mut encoder).expect("memory");
    encoder.finish().expect("memory")
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    let length = (data.len() as u32).to_be_bytes();
    [&length[..], kind, data, &crc.sum().to_be_bytes()].concat()
}

/// Pictures that say that they are large, or that become so.
#[test]
fn pictures_that_are_bombs() {
    let yard = Yard::of_bundles(&[model("digits")], &[]);
    let three = photo("digit.png");
    let send = |picture: &[u8]| yard.server.infer_raw("digits", "image/png", picture);
    assert_eq!(send(&three).strings("label")[0], "3");
    let before = yard.server.peak_mib();

    let head = |width: [u8; 4], height: [u8; 4]| [&width[..], &height, &[8, 2, 0, 0, 0]].concat();
    let said = head([0, 0, 0xff, 0xff], [0, 0, 0xff, 0xff]);
    let png_header = [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &said)].concat();
    let jpeg_header = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9";
    let webp_header =
        b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\xff\xff\x00";
    for (name, picture, reason) in [
        ("a PNG's header", png_header, "the image is 65535 × 65535 pixels"),
        ("a JPEG's header", jpeg_header.to_vec(), "the image is 65535 × 65535 pixels"),
        ("a WebP's header", webp_header.to_vec(), "damaged WebP"),
        ("36 megapixels of 8 bytes", png(6000, 16, 6, 4), "MiB to decode, expected at most 64"),
        ("100 megapixels", png(10_000, 8, 0, 1), "expected at most 40 million"),
    ] {
        let text = yard.beside(|| send(&picture)).error(400, "invalid-input");
        assert!(text.contains(reason), "{name}: {text}");
    }
    // A small picture with a profile and a text that become large: read past, or refused.
    let profile = [b"x\0\0".to_vec(), deflated(1 << 30)].concat();
    for kind in [b"iCCP", b"zTXt"] {
        let bomb = [&three[..33], &chunk(kind, &profile), &three[33..]].concat();
        let status = yard.beside(|| send(&bomb)).status;
        assert!([200, 400].contains(&status), "{status}");
    }
    let peak = yard.server.peak_mib();
    assert!(peak < before + 600, "{before} MiB before, {peak} MiB at most");
    assert_eq!(send(&three).strings("label")[0], "3");
    yard.stop();
}

/// Sends `end` byte by byte, as slowly as a server may lose its patience, and returns what it
/// says to that.
fn trickle(address: &str, start: &str, end: u8) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    stream.write_all(start.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    for _ in 0..1200 {
        let mut some = [0; 1024];
        match stream.read(&mut some) {
            Ok(0) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(length) => answer.extend_from_slice(&some[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // It may be closed already, which the next read tells.
                let _ = stream.write_all(&[end]);
            }
            Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
        }
    }
    panic!("it is patient: {}", String::from_utf8_lossy(&answer));
}

#[test]
fn clients_that_are_slow() {
    let yard = Yard::of_bundles(&[], &["--body-timeout-ms", "500"]);
    yard.beside(|| {
        let head = "POST /v2/models/add/infer HTTP/1.1\r\nHost: x\r\n";
        let body = format!("{head}Content-Length: 100000\r\n\r\n");
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n186a0\r\n");
        let address = yard.server.address();
        for start in [body, chunked] {
            let answer = trickle(address, &start, b' ');
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            assert!(answer.contains("wisp-error: body-lost"), "{answer}");
        }
        // Ten seconds for a head: the connection is closed.
        let answer = trickle(address, &format!("{head}x-slow: "), b'x');
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    });
    yard.stop();
}

/// A guest of many parts takes more of the pool than one place: who finds none is told to come
/// again.
#[test]
fn one_more_than_the_pool_holds() {
    let folder = scratch();
    let many: String = (0..20)
        .map(|part| format!("(core module $m{part}) (core instance (instantiate $m{part}))"))
        .collect();
    let parts = Guest { infer: "(loop $again (br $again))", ..Guest::GOOD };
    let bundle = super::wat::write_bundle(
        folder.path(),
        "many",
        &parts.component(&many),
        "[limits]\nmemory_mib = 16\ndeadline_ms = 4000\n",
    );
    // Four places have room for 32 core instances.
    let yard = Yard::of_bundles(&[bundle], &["--sandboxes", "4"]);
    // Whoever is refused holds what is left for a moment, in which the bystander would be, too.
    thread::scope(|scope| {
        let asked: Vec<_> = (0..3).map(|_| scope.spawn(|| yard.order("many", ""))).collect();
        let replies = asked.into_iter().map(|asked| asked.join().expect("answered"));
        let (late, refused): (Vec<_>, Vec<_>) = replies.partition(|reply| reply.status == 504);
        assert_eq!((late.len(), refused.len()), (1, 2));
        for reply in refused {
            let text = reply.error(503, "no-room");
            assert!(text.contains("all instances of the sandbox pool are in use"), "{text}");
            assert_eq!(reply.header("retry-after"), Some("1"));
        }
    });
    yard.bystander_answers();
    assert_eq!(yard.failures("many", "no-room"), 2);
    yard.stop();
}

/// Asks for 32 MiB, more than sockets hold, and reads none of it.
#[test]
fn clients_that_do_not_read() {
    let bundles = [fixture("models/echo.onnx")];
    let yard = Yard::of_bundles(&bundles, &["--body-timeout-ms", "1500", "--log", "debug"]);
    let data = vec![0; 32 << 20];
    let input = json!({
        "name": "x", "datatype": "FP32", "shape": [data.len() / 4],
        "parameters": {"binary_data_size": data.len()}
    });
    let json = json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string();
    let head = format!(
        "POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {}\r\nContent-Length: {}\r\n\r\n{json}",
        json.len(),
        json.len() + data.len()
    );
    yard.beside(|| {
        let mut stream = TcpStream::connect(yard.server.address()).expect("it listens");
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(&data).expect("sent");
        let until = Instant::now() + Duration::from_secs(30);
        while !yard.server.log().contains("did not take its answer within 1.5s") {
            assert!(Instant::now() < until, "{}", yard.server.log());
            thread::sleep(Duration::from_millis(20));
        }
        // What was on its way is there, and then nothing.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < data.len(), "{} bytes came", answer.len());
    });
    yard.stop();
}

/// HTTP/2 by hand: asks for a document, and opens no window for it, or one for a few bytes. No
/// write to the connection has to wait for such a client, but all of the answer has to.
#[test]
fn clients_that_open_no_window() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    for window in [0, 16_u32] {
        let bundles = [fixture("models/echo.onnx")];
        let yard = Yard::of_bundles(&bundles, &["--body-timeout-ms", "1500", "--log", "debug"]);
        let settings = frame(4, 0, 0, &[&[0, 4], &window.to_be_bytes()[..]].concat());
        let path = "/openapi.json";
        // GET, http, and the path as it is.
        let head = [&[0x82, 0x86, 0x04, path.len() as u8], path.as_bytes()].concat();
        let request = frame(1, 0b101, 1, &head);
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        yard.beside(|| {
            let mut stream = TcpStream::connect(yard.server.address()).expect("it listens");
            let asked = [&opening[..], &settings, &request].concat();
            stream.write_all(&asked).expect("sent");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 4096, "{} bytes came", answer.len());
        });
        // Its log comes by another way than the end of the connection.
        let until = Instant::now() + Duration::from_secs(20);
        while !yard.server.log().contains("did not take its answer within 1.5s") {
            assert!(Instant::now() < until, "{}", yard.server.log());
            thread::sleep(Duration::from_millis(10));
        }
        yard.stop();
    }
}
