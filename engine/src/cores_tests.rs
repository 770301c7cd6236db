use super::*;

fn is_given(turn: &mut Turn<'_>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(&mut *turn).poll(&mut context) {
        // Kept as given: the next poll would say so again.
        Poll::Ready(busy) => {
            mem::forget(busy);
            turn.has_ended = false;
            true
        }
        Poll::Pending => false,
    }
}

#[test]
fn who_came_first_has_the_next_core() {
    let cores = Cores::new(2);
    let (first, _second) = (cores.try_take().expect("free"), cores.try_take().expect("free"));
    let (mut third, mut fourth) = (cores.take_quick(), cores.take_quick());
    assert!(!is_given(&mut third) && !is_given(&mut fourth) && cores.are_wanted());
    drop(first);
    assert!(is_given(&mut third) && !is_given(&mut fourth));
    assert!(cores.try_take().is_none(), "somebody waits");
    // Given, and not taken.
    drop(third);
    assert!(is_given(&mut fourth) && !cores.are_wanted());
}

#[test]
fn who_waits_no_longer_is_passed_over() {
    let cores = Cores::new(1);
    let only = cores.try_take().expect("free");
    let (gone, mut next) = (cores.take_quick(), cores.take_quick());
    drop(gone);
    assert!(cores.are_wanted());
    drop(only);
    assert!(is_given(&mut next));
    drop(next);
    assert!(cores.try_take().is_some());
    assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
}

#[test]
fn quick_ones_compute_beside_what_has_all_cores_stuck() {
    let (cores, long_time) = (Cores::new(1), Duration::from_secs(1000));
    let stuck = cores.wait_for_one();
    let mut long = cores.wait(false);
    let (mut first, mut second) = (cores.take_quick(), cores.take_quick());
    cores.find_stuck(cores.given() + 1, long_time);
    cores.find_stuck(cores.given(), Duration::ZERO);
    assert!(!is_given(&mut first), "somebody was given one, or it is over");
    cores.find_stuck(cores.given(), long_time);
    assert!(is_given(&mut first) && !is_given(&mut second) && !is_given(&mut long));
    assert!(cores.are_exceeded());
    drop(first);
    assert!(is_given(&mut second) && cores.try_take_quick().is_none());
    drop(second);
    assert!(cores.try_take_quick().is_none(), "somebody waits, who came first");
    drop(stuck);
    assert!(is_given(&mut long) && !cores.are_stuck());
    assert!(cores.try_take_quick().is_none());
    cores.find_stuck(cores.given(), long_time);
    drop(cores.try_take_quick().expect("one more"));
    drop(long);
    assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
}

#[test]
fn who_gives_way_to_a_quick_one_has_the_next_core() {
    let cores = Cores::new(1);
    thread::scope(|scope| {
        let _long = cores.wait_for_one();
        let mut other = cores.wait(false);
        assert_eq!(cores.give_way(true, later()), None, "nobody quick waits");
        let quick = scope.spawn(|| drop(block_on(cores.take_quick(), None)));
        while !cores.are_wanted() {
            thread::yield_now();
        }
        assert_eq!(cores.spare(1).count(), 0);
        assert!(cores.give_way(true, later()).is_some_and(|quick| !quick.is_zero()));
        quick.join().expect("no panic");
        assert!(!is_given(&mut other), "the long one has it again");
        drop(other);
        assert!(cores.try_take().is_none(), "it has it still");
    });
    assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(1000)
}

#[test]
fn who_gave_way_first_has_a_core_first() {
    let mut queue = Queue::default();
    let [last, first, quick, second] =
        [queue.push(false), queue.push_giver(), queue.push(true), queue.push_giver()];
    let places = [first, second, last, quick].map(|number| queue.place(number));
    assert_eq!(places, [0, 1, 2, 3].map(Some));
}

#[test]
fn who_gave_way_and_is_over_waits_no_longer() {
    let cores = Cores::new(1);
    let long = cores.wait_for_one();
    let (mut quick, mut next) = (cores.take_quick(), cores.take_quick());
    let until = Instant::now() + Duration::from_millis(20);
    assert!(cores.give_way(true, until).is_some());
    assert!(is_given(&mut quick), "it keeps the core");
    assert_eq!(cores.give_way(true, until), None, "it has none to give");
    assert!(!is_given(&mut next));
    drop((quick, long));
    assert!(is_given(&mut next));
    drop(next);
    assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
    assert_eq!(cores.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn no_core_is_lost_and_none_is_two_threads() {
    let cores = Cores::new(2);
    let inside = AtomicUsize::new(0);
    let enter = || assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
    let leave = || assert!(inside.fetch_sub(1, Ordering::SeqCst) > 0);
    thread::scope(|scope| {
        for number in 0..6 {
            let (cores, enter, leave) = (&cores, &enter, &leave);
            scope.spawn(move || {
                for turn in 0..3000 {
                    let is_quick = number % 2 == 0;
                    if is_quick && turn % 7 == 0 {
                        // Some leave while they wait.
                        let mut turn = cores.take_quick();
                        let mut context = Context::from_waker(Waker::noop());
                        let _ = Pin::new(&mut turn).poll(&mut context);
                        continue;
                    }
                    let _busy = match is_quick {
                        true => block_on(cores.take_quick(), None).expect("no end"),
                        false => cores.wait_for_one(),
                    };
                    enter();
                    let spare = cores.spare(1);
                    (0..spare.count()).for_each(|_| enter());
                    (0..spare.count()).for_each(|_| leave());
                    drop(spare);
                    leave();
                    if !is_quick {
                        cores.give_way(turn % 2 == 0, later());
                    }
                }
            });
        }
    });
    assert_eq!(cores.busy.load(Ordering::SeqCst), 0);
    assert_eq!(cores.waiting.load(Ordering::SeqCst), 0);
    assert!(!cores.are_wanted());
}
