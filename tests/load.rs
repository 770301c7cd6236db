//! Many requests at once, overload, and stopping in the middle of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Server, fixture, hostile_bundle, model, photo, scratch};

#[test]
fn a_thousand_requests_sixteen_in_flight() {
    let server = Server::start(&[model("digits"), fixture("models/add.onnx")]);
    let seven = crate::support::read(&fixture("photos/seven.png"));
    let three = photo("digit.png");
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= 1000 {
                        return;
                    }
                    match number % 3 {
                        0 => assert_eq!(server.infer_raw("digits", "image/png", &seven).strings("label")[0], "7"),
                        1 => assert_eq!(server.infer_raw("digits", "image/png", &three).strings("label")[0], "3"),
                        _ => {
                            let input = |name: &str, value: usize| json!({"name": name, "datatype": "FP32", "shape": [1, 4], "data": [value, 0, 0, 1]});
                            let reply = server.infer("add", &json!({"id": number.to_string(), "inputs": [input("a", number), input("b", 1)]}));
                            assert_eq!(reply.floats("sum"), [number as f64 + 1.0, 0.0, 0.0, 2.0]);
                            assert_eq!(reply.json()["id"], number.to_string());
                        }
                    }
                }
            });
        }
    });
    let (ended_well, log) = server.stop();
    assert!(ended_well && log.contains("late=false live_sandboxes=0"), "{log}");
    assert!(!log.contains("panic") && !log.contains("WARN"), "{log}");
}

#[test]
fn what_cannot_wait_is_refused_at_once() {
    let folder = scratch();
    let bundle = hostile_bundle(folder.path(), "hostile", "[limits]\ndeadline_ms = 1500\n");
    let server = Server::start_with(&[bundle], &["--concurrency", "1", "--queue", "1"]);
    assert_eq!(server.infer_raw("hostile", "text/plain", b"behave").status, 200);
    let replies: Vec<_> = thread::scope(|scope| {
        let requests: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| server.infer_raw("hostile", "text/plain", b"loop")))
            .collect();
        requests.into_iter().map(|request| request.join().expect("answered")).collect()
    });
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status == 503).collect();
    assert!(refused.len() >= 4, "{replies:?}");
    for reply in &refused {
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert!(reply.error(503, "overloaded").starts_with("model `hostile` is overloaded: "));
    }
    assert!(replies.iter().filter(|reply| reply.status != 503).all(|reply| reply.status == 504));
    assert_eq!(server.infer_raw("hostile", "text/plain", b"behave").status, 200);
}

#[test]
fn requests_in_flight_finish_when_the_server_stops() {
    let folder = scratch();
    let server = Server::start(&[hostile_bundle(folder.path(), "hostile", "")]);
    let reply = thread::scope(|scope| {
        let request = scope.spawn(|| server.infer_raw("hostile", "text/plain", b"slow"));
        while !server.log().contains("slow work has begun") {
            assert!(!request.is_finished(), "{}", server.log());
            thread::yield_now();
        }
        server.terminate();
        request.join().expect("answered")
    });
    assert_eq!(reply.strings("did"), ["slow"]);
    let (ended_well, log) = server.stop();
    assert!(ended_well && log.contains("stopping: requests in flight finish"), "{log}");
}

/// However many wait for one long model, another's requests come in between.
#[test]
fn a_flood_of_one_model_does_not_starve_another() {
    let folder = scratch();
    let limits = "[limits]\ndeadline_ms = 50000\nconcurrency = 2\n";
    let bundles = ["flooded", "other"].map(|name| hostile_bundle(folder.path(), name, limits));
    let server = Server::start_with(&bundles, &["--deadline-ms", "50000"]);
    let ask = |model: &str| server.infer_raw(model, "text/plain", b"slow");
    let is_over = AtomicBool::new(false);
    // Also where what follows fails.
    let until = Instant::now() + Duration::from_secs(60);
    let waiting = || {
        let metrics = String::from_utf8(server.get("/metrics").body).expect("UTF-8");
        let line = "wisp_waiting_requests{model=\"flooded\",version=\"1\"} ";
        let found = metrics.lines().find_map(|found| found.strip_prefix(line)).expect("a metric");
        found.parse::<usize>().expect("a number")
    };
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && Instant::now() < until {
                    assert_eq!(ask("flooded").status, 200);
                }
            });
        }
        while waiting() == 0 {
            assert!(Instant::now() < until, "nobody waits");
        }
        for _ in 0..5 {
            assert_eq!(ask("other").status, 200);
            assert!(waiting() > 0, "the flood has ended");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
