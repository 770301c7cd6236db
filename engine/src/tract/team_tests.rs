use super::*;
use crate::cores::Cores;

struct Helped(Helpers);

impl Watch for Helped {
    fn is_over(&self) -> bool {
        false
    }

    fn helpers(&self) -> Option<Helpers> {
        Some(self.0.clone())
    }
}

/// Counts itself out, also where its part panics.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn who_wakes_up_looks_before_it_sleeps_again() {
    let is_done = Cell::new(false);
    let mut slept = 0;
    wait_until(
        Duration::ZERO,
        || is_done.get(),
        || {
            slept += 1;
            is_done.set(true);
        },
    );
    assert_eq!(slept, 1);
}

#[test]
fn helpers_leave_before_the_work_is_done_where_a_core_is_wanted() {
    let cores = Cores::new(2);
    let _caller = cores.wait_for_one();
    let watch = Helped(Helpers { cores: cores.clone(), most: 1 });
    let caller = thread::current().id();
    let (helped, given) = (AtomicBool::new(false), AtomicBool::new(false));
    let wait = |longest, holds: &dyn Fn() -> bool| {
        let late = Instant::now() + longest;
        while !holds() && Instant::now() < late {
            thread::yield_now();
        }
        holds()
    };
    let part = |_: usize, _: &mut Room| {
        if thread::current().id() != caller {
            return helped.store(true, Ordering::Relaxed);
        }
        if wait(Duration::from_millis(50), &|| helped.load(Ordering::Relaxed)) {
            let _turn = cores.take_quick();
            let is_given = wait(Duration::from_secs(20), &|| !cores.are_wanted());
            given.store(is_given, Ordering::Relaxed);
        }
        panic!("there are more parts than anybody can do");
    };
    let run = || with(&watch, || OfThread.share(usize::MAX / 2, &part));
    // Other tests may have all helpers, or one may be late.
    let is_given = (0..200).any(|_| {
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        given.load(Ordering::Relaxed)
    });
    assert!(is_given, "no core was given up");
}

#[test]
fn a_part_that_panics_ends_its_run_and_no_other() {
    let cores = Cores::new(2);
    let _caller = cores.wait_for_one();
    let watch = Helped(Helpers { cores: cores.clone(), most: 1 });
    let running = AtomicUsize::new(0);
    let run = |bad: Option<usize>| {
        with(&watch, || {
            OfThread.share(8, &|part, _| {
                running.fetch_add(1, Ordering::SeqCst);
                let _counted = Running(&running);
                // Long enough for a helper to wake up.
                thread::sleep(Duration::from_millis(1));
                assert!(bad != Some(part), "it was told to");
            });
        });
    };
    for bad in [0, 1, 7] {
        assert!(catch_unwind(AssertUnwindSafe(|| run(Some(bad)))).is_err(), "part {bad}");
        assert_eq!(running.load(Ordering::SeqCst), 0, "parts outlive their run");
        run(None);
    }
}
