//! Work that several threads share, if the caller has them. Each part writes places of the output that are its own, so
//! results are the same to the last bit, whoever computes what.
//!
//! What must never live here: threads, arithmetic.

use std::cell::RefCell;
use std::ops::Range;

use crate::packed::Buffer;

/// Less work than twice so many products is not shared: they take some 10 µs, several times what handing them over does.
#[cfg(not(test))]
const WORTH: usize = 512 * 1024;
/// Small enough for tests to see parts of everything.
#[cfg(test)]
const WORTH: usize = 64;

/// Products that take some 100 µs where nothing is in the way.
const BLOCK: usize = 4 * 1024 * 1024;

/// Parts for each thread: one that comes late, or is interrupted, then leaves the others more, and work that does not
/// divide evenly leaves nobody waiting for long.
const PARTS_EACH: usize = 8;

/// Of [`WORTH`], the least that a part is.
const FRACTION: usize = 4;

/// What a thread has for its parts: memory that it keeps between them, so that none allocates twice, and its pauses.
#[derive(Clone, Debug, Default)]
pub struct Room {
    pub(crate) panels: Buffer,
    pub(crate) pauses: Pauses,
}

impl Room {
    /// Calls `pause` between blocks of work, of some 100 µs each at most if rows are not very long: the thread may wait
    /// there, as others want its core.
    pub fn pausing(pause: fn()) -> Self {
        Self { pauses: Pauses(Some(pause)), ..Self::default() }
    }
}

/// What a thread does between blocks of work, if anything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pauses(Option<fn()>);

impl Pauses {
    pub fn pause(self) {
        if let Some(pause) = self.0 {
            pause();
        }
    }
}

/// Threads that share the work of one call, the caller's among them.
///
/// # Safety
/// [`Team::share`] calls each part exactly once, and returns, or panics, only after all that were begun have ended: parts
/// write to places of their own in what the caller has borrowed.
pub unsafe trait Team {
    /// How many they are at most.
    fn width(&self) -> usize;

    /// Calls `work` once for each part of `0..parts`, each time with room that nobody else uses meanwhile, and returns
    /// when all have ended. Parts do not share work in turn.
    fn share(&self, parts: usize, work: &(dyn Fn(usize, &mut Room) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Default)]
pub struct Alone(RefCell<Room>);

// SAFETY: one part after the other, here.
unsafe impl Team for Alone {
    fn width(&self) -> usize {
        1
    }

    fn share(&self, parts: usize, work: &(dyn Fn(usize, &mut Room) + Sync)) {
        let room = &mut *self.0.borrow_mut();
        (0..parts).for_each(|part| work(part, room));
    }
}

/// Into how many parts to split so many products of something that has at most `most` parts.
pub(crate) fn parts(team: &dyn Team, products: usize, most: usize) -> usize {
    match team.width() {
        0 | 1 => 1,
        _ if products < 2 * WORTH => 1,
        width => (products / (WORTH / FRACTION)).min(width * PARTS_EACH).min(most).max(1),
    }
}

/// As [`parts`] for what costs nothing to cut: one thread has pauses between parts, too.
pub(crate) fn cut(team: &dyn Team, products: usize, most: usize) -> usize {
    parts(team, products, most).max((products / BLOCK).min(most))
}

/// A part's share of `0..count`, cut at multiples of `step`, as even as can be.
pub(crate) fn share_of(part: usize, parts: usize, count: usize, step: usize) -> Range<usize> {
    let steps = count.div_ceil(step);
    let edge = |part: usize| (part * steps / parts * step).min(count);
    edge(part)..edge(part + 1)
}

/// Where parts write, each other places.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: whoever writes through the pointer vouches for its places, and that they are no other part's.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(output: &mut [f32]) -> Shared {
        Shared(output.as_mut_ptr())
    }

    /// Its `index`th value's place.
    pub fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

/// Splits values at multiples of `unit` and does `work` on each part; of so many `products` in all.
pub fn share_values(
    team: &dyn Team,
    values: &mut [f32],
    unit: usize,
    products: usize,
    work: &(dyn Fn(&mut [f32]) + Sync),
) {
    let count = values.len();
    let parts = cut(team, products, count.div_ceil(unit.max(1)));
    if parts <= 1 {
        return work(values);
    }
    let shared = Shared::new(values);
    team.share(parts, &|part, room| {
        room.pauses.pause();
        let share = share_of(part, parts, count, unit.max(1));
        // SAFETY: shares lie inside the values and are nobody else's.
        work(unsafe { std::slice::from_raw_parts_mut(shared.at(share.start), share.len()) });
    });
}
