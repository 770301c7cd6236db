//! What does not end: it is ended at its deadline, and holds up nobody else.

use std::time::{Duration, Instant};

use super::wat::Guest;
use super::yard::{Yard, fails, hostile_with_echo, says};
use crate::support::{Server, add_request, fixture, scratch};

const LATE: &str = "did not answer within 1s";

#[test]
fn handlers_that_never_end() {
    let yard = Yard::of_hostile("memory_mib = 64\ndeadline_ms = 1000");
    yard.run(
        "hostile",
        &[
            fails(1, "loop", 504, "deadline", LATE),
            fails(2, "copy", 504, "deadline", LATE),
            fails(2, "fill", 504, "deadline", LATE),
            fails(15, "print-for-ever", 504, "deadline", LATE),
            fails(15, "wasi-print-for-ever", 504, "deadline", LATE),
            fails(17, "wasi-sleep", 504, "deadline", LATE),
        ],
    );
    // Quick requests run inline: one that turns out to loop must not keep its thread.
    yard.run("hostile", &std::array::from_fn::<_, 20, _>(|_| says(1, "behave", "behave")));
    yard.run("hostile", &[fails(1, "loop", 504, "deadline", LATE)]);
    // Many at a time, of which no one may be left.
    yard.beside(|| {
        std::thread::scope(|scope| {
            let ask = || yard.order("hostile", "loop").error(504, "deadline");
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().for_each(|request| drop(request.join().expect("answered")));
        });
    });
    let log = yard.stop();
    // What the endless printers said was cut, each time once.
    assert_eq!(log.matches("has reached its limit").count(), 2, "{log}");
    assert!(log.len() < 200_000, "{} bytes", log.len());
}

/// The parts of a guest that run around its handler.
#[test]
fn loops_around_the_handler() {
    const LOOP: &str = "(loop $again (br $again))";
    let folder = scratch();
    let limits = "[limits]\nmemory_mib = 16\ndeadline_ms = 1000\n";
    let realloc = Guest { realloc: LOOP, ..Guest::GOOD };
    let post_return = Guest { post_return: LOOP, ..Guest::GOOD };
    let bundles = [
        Guest::GOOD.bundle(folder.path(), "good", limits),
        realloc.bundle(folder.path(), "realloc", limits),
        post_return.bundle(folder.path(), "post-return", limits),
    ];
    let yard = Yard::of_bundles(&bundles, &[]);
    yard.run("good", &[says(1, "anything", "ok")]);
    for model in ["realloc", "post-return"] {
        yard.run(model, &[fails(1, "anything", 504, "deadline", LATE)]);
    }
    yard.stop();
}

/// The deadline and what a large copy or a busy machine may add to it.
#[test]
fn a_deadline_is_not_much_overshot() {
    let yard = Yard::of_hostile("memory_mib = 64\ndeadline_ms = 1000");
    for order in ["loop", "copy", "wasi-sleep"] {
        let asked = Instant::now();
        yard.order("hostile", order).error(504, "deadline");
        let took = asked.elapsed();
        assert!(took >= Duration::from_secs(1), "{order}: {took:?}");
        assert!(took < Duration::from_secs(10), "{order}: {took:?}");
    }
    yard.stop();
}

/// As many loops as may run, and more: health and another model answer meanwhile.
#[test]
fn slow_guests_hold_up_nobody_else() {
    let folder = scratch();
    let bundle = hostile_with_echo(folder.path(), "deadline_ms = 3000");
    let server = Server::start(&[bundle, fixture("models/add.onnx")]);
    let order = |order: &str| server.infer_raw("hostile", "text/plain", order.as_bytes());
    let add = add_request();
    for _ in 0..20 {
        assert_eq!(order("behave").status, 200);
        assert_eq!(server.infer("add", &add).status, 200);
    }
    std::thread::scope(|scope| {
        let loops: Vec<_> = (0..12).map(|_| scope.spawn(|| order("loop"))).collect();
        let started = Instant::now();
        let mut answered = 0;
        while loops.iter().any(|request| !request.is_finished()) {
            assert_eq!(server.get("/v2/health/live").status, 200);
            assert_eq!(server.infer("add", &add).status, 200);
            answered += 1;
        }
        // Were they held up, a few would have come through at best: each round would have
        // waited for a loop's end.
        assert!(answered > 20, "{answered} rounds in {:?}", started.elapsed());
        for request in loops {
            request.join().expect("answered").error(504, "deadline");
        }
    });
}
