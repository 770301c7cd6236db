//! The allocator: what a thread has taken of it, and an end to those that take too much. The one
//! module of the crate that names it.
//!
//! It is also where an engine that asks nobody on its way can be made to pause.
//!
//! An engine asks for memory as it likes, and a Rust program that is refused any ends. So where a
//! graph may take any amount it runs on a thread of its own, within a `Bound`: one that asks for
//! more than it may gets no answer, ever. It stops there, and what it took goes back to the system.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, RefCell};
use std::thread;
use std::{mem, ptr};

use mimalloc::MiMalloc;

/// Blocks from this size are known one by one while their thread is bounded.
const LARGE: usize = 64 << 10;

/// What small blocks may take beyond.
const SLACK: isize = 16 << 20;

/// Of large blocks that are known; what is more is lost with its thread.
const MAX_KNOWN: usize = 1 << 13;

/// A process's allocator. glibc's gives freed tensors back to the system and faults them in
/// again at the next run: a 600 KB round trip takes some ten times as long.
///
/// It counts what each thread takes, which is how a loaded graph's memory is known whatever its
/// engine keeps it in.
pub struct Allocator(MiMalloc);

thread_local! {
    // All of types without a destructor, so that they can be read at any time of a thread's life.
    /// Bytes taken less bytes freed by this thread.
    static NET_BYTES: Cell<isize> = const { Cell::new(0) };
    /// What that may come to.
    static MOST: Cell<isize> = const { Cell::new(isize::MAX) };
    /// The innermost of those that this thread is within.
    static BOUND: Cell<*const Inner> = const { Cell::new(ptr::null()) };
    /// What this thread does wherever it asks for memory.
    static PAUSE: Cell<Option<Pause<'static>>> = const { Cell::new(None) };
}

type Pause<'a> = &'a dyn Fn();

impl Allocator {
    pub const fn new() -> Self {
        Self(MiMalloc)
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts bytes that are about to be taken.
fn count(bytes: usize) {
    if let Some(pause) = PAUSE.get() {
        pause_at(pause);
    }
    // No layout has more than `isize` holds.
    let net = NET_BYTES.get().saturating_add(bytes as isize);
    if net > MOST.get() {
        exceed(net, bytes);
    }
    NET_BYTES.set(net);
}

fn count_freed(bytes: usize) {
    NET_BYTES.set(NET_BYTES.get().saturating_sub(bytes as isize));
}

// SAFETY: every call goes to mimalloc as it came, or never returns; what is beside it touches no
// memory that is not its thread's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        let block = unsafe { self.0.alloc(layout) };
        know(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        let block = unsafe { self.0.alloc_zeroed(layout) };
        know(block, layout.size());
        block
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_freed(layout.size());
        count(size);
        forget(pointer, layout.size());
        // SAFETY: the caller's promise.
        let block = unsafe { self.0.realloc(pointer, layout, size) };
        know(block, size);
        block
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_freed(layout.size());
        forget(pointer, layout.size());
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

/// Runs `work` on this thread, and returns with its result the bytes that it took and did not
/// free: 0 where another allocator is the process's.
pub fn kept<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = NET_BYTES.get();
    let result = work();
    let net = NET_BYTES.get().saturating_sub(before);
    (result, u64::try_from(net).unwrap_or(0))
}

/// Does `work`, and `pause` wherever it asks for memory on this thread, which must hold no lock then
/// that others wait for. `pause` does not panic.
pub(crate) fn pausing<T>(pause: &dyn Fn(), work: impl FnOnce() -> T) -> T {
    // SAFETY: only the lifetime changes, and the place is given back before this function ends, in
    // a panic too. What reads it does so on this thread, within this call.
    let pause = unsafe { mem::transmute::<Pause<'_>, Pause<'static>>(pause) };
    let _outer = OuterPause(PAUSE.replace(Some(pause)));
    work()
}

struct OuterPause(Option<Pause<'static>>);

impl Drop for OuterPause {
    fn drop(&mut self) {
        PAUSE.set(self.0);
    }
}

fn pause_at(pause: Pause<'static>) {
    // A panic is told under the lock of whatever prints it.
    if !thread::panicking() {
        PAUSE.set(None);
        pause();
        PAUSE.set(Some(pause));
    }
}

/// Gives free pages back to the system now: those that this thread had, and nobody's. The
/// allocator keeps them for a while otherwise, as what is freed is mostly wanted again soon; that
/// of a model that was given up is not.
pub fn collect() {
    // SAFETY: may be called at any time from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Called where a thread stops for good, with the bytes that it keeps.
pub(crate) type Lost<'a> = Box<dyn FnOnce(usize) + 'a>;

/// What a thread is within, from [`Bound::enter`] until it is dropped, on the same thread.
pub(crate) struct Bound(Box<Inner>);

struct Inner {
    /// What was to be done where the thread stops for good.
    lost: RefCell<Option<Lost<'static>>>,
    /// The large blocks that it took and has not freed. `None`: others may have them by now.
    blocks: Option<RefCell<Vec<(usize, usize)>>>,
    outer: *const Inner,
    outer_most: isize,
    /// What the thread had taken before.
    before: isize,
}

impl Bound {
    /// From now on this thread may take `most` bytes. If it asks for more, it stops for good:
    /// `lost` is called in its place, and its large blocks are given back. Nobody else may have
    /// come by one of them, but through [`Bound::enter_shared`]; nor wait for the thread.
    ///
    /// Without bound where another allocator is the process's.
    pub(crate) fn enter(most: usize, lost: Lost<'static>) -> Self {
        let most = isize::try_from(most).unwrap_or(isize::MAX);
        let most = NET_BYTES.get().saturating_add(most).min(MOST.get());
        // As large as it may get, as the allocator must not ask itself for more; and known to no
        // bound further out, which would give it back while it is read.
        let outer = BOUND.replace(ptr::null());
        let blocks = Vec::with_capacity(MAX_KNOWN);
        BOUND.set(outer);
        Self::begin(most, lost, Some(RefCell::new(blocks)))
    }

    /// From now on others come by what this thread takes: if it stops for good, that stays.
    pub(crate) fn enter_shared() -> Self {
        Self::begin(MOST.get(), Box::new(|_| ()), None)
    }

    fn begin(
        most: isize,
        lost: Lost<'static>,
        blocks: Option<RefCell<Vec<(usize, usize)>>>,
    ) -> Self {
        let lost = RefCell::new(Some(lost));
        let (outer, outer_most, before) = (BOUND.get(), MOST.get(), NET_BYTES.get());
        let inner = Inner { lost, blocks, outer, outer_most, before };
        let bound = Self(Box::new(inner));
        BOUND.set(&raw const *bound.0);
        MOST.set(most);
        bound
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        BOUND.set(self.0.outer);
        MOST.set(self.0.outer_most);
    }
}

/// The innermost, if any.
fn bound<'a>() -> Option<&'a Inner> {
    // SAFETY: of this thread, and taken out before it is dropped.
    unsafe { BOUND.get().as_ref() }
}

fn know(block: *mut u8, bytes: usize) {
    if bytes >= LARGE
        && !block.is_null()
        && let Some(Inner { blocks: Some(blocks), .. }) = bound()
    {
        let mut blocks = blocks.borrow_mut();
        if blocks.len() < MAX_KNOWN {
            blocks.push((block as usize, bytes));
        }
    }
}

fn forget(block: *mut u8, bytes: usize) {
    if bytes < LARGE {
        return;
    }
    for Inner { blocks, .. } in outwards(bound()) {
        if let Some(blocks) = blocks {
            // The newest goes first, mostly.
            let mut blocks = blocks.borrow_mut();
            if let Some(at) = blocks.iter().rposition(|(known, _)| *known == block as usize) {
                blocks.swap_remove(at);
                return;
            }
        }
    }
}

/// A bound, and those that it is within.
fn outwards(bound: Option<&Inner>) -> impl Iterator<Item = &Inner> {
    // SAFETY: those further out live longer, on this thread.
    std::iter::successors(bound, |inner| unsafe { inner.outer.as_ref() })
}

/// The thread has asked for more than it may take, `net` bytes in all.
#[cold]
fn exceed(net: isize, bytes: usize) {
    // Small ones are let through for a while: they may be asked for under somebody's lock.
    if bytes < LARGE && net.saturating_sub(MOST.get()) <= SLACK {
        return;
    }
    MOST.set(isize::MAX);
    // What follows takes locks.
    PAUSE.set(None);
    let innermost = bound();
    BOUND.set(ptr::null());
    // What is counted is what was taken: what is asked for now is not.
    let mut keeps = NET_BYTES.get();
    for bound in outwards(innermost) {
        for (block, bytes) in bound.blocks.iter().flat_map(|blocks| blocks.take()) {
            keeps -= give_back(block, bytes) as isize;
        }
    }
    for Inner { lost, before, .. } in outwards(innermost) {
        if let Some(lost) = lost.take() {
            lost(usize::try_from(keeps.saturating_sub(*before)).unwrap_or(0));
        }
    }
    collect();
    loop {
        thread::park();
    }
}

/// Gives the whole pages of a block back to the system, and says how many bytes. It stays taken.
fn give_back(block: usize, bytes: usize) -> usize {
    let page = rustix::param::page_size();
    let (first, end) = (block.next_multiple_of(page), (block + bytes) / page * page);
    if first >= end {
        return 0;
    }
    // SAFETY: the pages are this thread's, which never touches them again.
    let given = unsafe {
        let pages = ptr::without_provenance_mut(first);
        rustix::mm::madvise(pages, end - first, rustix::mm::Advice::LinuxDontNeed)
    };
    // Pages that are locked, say, stay.
    given.map_or(0, |()| end - first)
}
