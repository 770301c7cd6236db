use std::task::Waker;

use super::*;

#[test]
fn what_is_much_larger_than_others_counts_as_long() {
    let gate = Gate::new(1, 1, Runs::default());
    assert!(!gate.is_quick(1000));
    gate.record(QUICK / 20, 1000);
    assert_eq!(
        [1, 1000, 10_000, 100_000].map(|bytes| gate.is_quick(bytes)),
        [true, true, true, false]
    );
}

#[test]
fn who_was_given_up_early_is_not_quick() {
    let gate = Arc::new(Gate::new(1, 1, Runs::default()));
    let mut context = Context::from_waker(Waker::noop());
    let mut given_up = Timed::new(std::future::pending::<()>(), gate.clone(), 1000);
    assert!(Pin::new(&mut given_up).poll(&mut context).is_pending());
    drop(given_up);
    let mut stopped = Timed::new(std::future::ready(()), gate.clone(), 1000);
    stopped.is_given_up.store(true, Ordering::Relaxed);
    assert!(Pin::new(&mut stopped).poll(&mut context).is_ready());
    drop(stopped);
    assert!(!gate.is_quick(1000));
    let mut ended = Timed::new(std::future::ready(()), gate.clone(), 1000);
    assert!(Pin::new(&mut ended).poll(&mut context).is_ready());
    drop(ended);
    assert!(gate.is_quick(1000));
}
