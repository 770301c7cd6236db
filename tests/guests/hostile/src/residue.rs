//! What a request leaves for the next one to find, and the search for it.

use std::hint::black_box;
use std::mem;

/// Twice the mark; that it is nowhere in the guest's own code or data, each use takes the half.
const TWICE: u64 = 0x2b8a_64d2_9ee4_c53a;

fn mark() -> u64 {
    black_box(TWICE) >> 1
}

/// Fills 8 MiB of heap and some stack with the mark, and forgets them.
pub(crate) fn write() {
    let memory: Vec<u64> = vec![mark(); (8 << 20) / 8];
    mem::forget(black_box(memory));
    let stack = [mark(); 8192];
    black_box(&stack);
}

/// Counts what is not zero in fresh memory, and marks in all there is.
pub(crate) fn scan() -> usize {
    #[cfg(target_arch = "wasm32")]
    {
        use core::arch::wasm32::{memory_grow, memory_size};
        let page = memory_grow::<0>(160);
        if page == usize::MAX {
            return usize::MAX;
        }
        // SAFETY: the pages were just grown and nothing else knows of them.
        let fresh = unsafe { std::slice::from_raw_parts((page << 16) as *const u8, 160 << 16) };
        // Not from address 0, which no reference may have.
        let words = (memory_size::<0>() << 16) / 8;
        let marks = (1..words).filter(|word| {
            // SAFETY: within the memory, and aligned.
            let found = unsafe { ((word * 8) as *const u64).read_volatile() };
            found == mark()
        });
        fresh.iter().filter(|&&byte| byte != 0).count() + marks.count()
    }
    #[cfg(not(target_arch = "wasm32"))]
    0
}
