//! How a product is cut: blocks of k, groups of panels.
//!
//! What must never live here: operands, arithmetic.

use crate::epilogue::Epilogue;
use crate::tile::{Finish, Start};

/// Elements of k taken at once: a group of three panels then takes 72 KiB, which streams from the second-level cache
/// while sums stay in registers.
pub(crate) const BLOCK_K: usize = 384;

/// One block of k.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub from: usize,
    pub len: usize,
    first: bool,
    last: bool,
}

impl Block {
    /// What the sums begin with.
    pub fn start(&self, bias: Option<Start>) -> Start {
        if self.first { bias.unwrap_or(Start::Zero) } else { Start::Accumulate }
    }

    /// What happens to the sums: all of the epilogue but the bias after the last block, nothing before. `at` is where
    /// the strip's output begins.
    pub fn finish(&self, epilogue: &Epilogue<'_>, at: usize) -> Finish {
        if !self.last {
            return Finish::NONE;
        }
        Finish::of(epilogue, at)
    }
}

/// Blocks of k, as even as can be, and one (empty) for k = 0, because the epilogue must still run.
pub(crate) struct Blocks {
    k: usize,
    count: usize,
    next: usize,
}

impl Blocks {
    pub fn new(k: usize) -> Blocks {
        Blocks::of(k, BLOCK_K)
    }

    /// Of at most `most` elements.
    pub fn of(k: usize, most: usize) -> Blocks {
        Blocks { k, count: k.div_ceil(most).max(1), next: 0 }
    }
}

impl Iterator for Blocks {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        if self.next == self.count {
            return None;
        }
        let edge = |i: usize| i * self.k / self.count;
        let (from, to) = (edge(self.next), edge(self.next + 1));
        self.next += 1;
        Some(Block { from, len: to - from, first: self.next == 1, last: self.next == self.count })
    }
}

/// Groups of at most `widest` panels, as even as can be: four panels are 2 and 2, not 3 and 1.
pub(crate) struct Groups {
    panels: usize,
    count: usize,
    next: usize,
}

impl Groups {
    pub fn new(panels: usize, widest: usize) -> Groups {
        Groups { panels, count: panels.div_ceil(widest), next: 0 }
    }
}

impl Iterator for Groups {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        if self.next == self.count {
            return None;
        }
        let edge = |i: usize| i * self.panels / self.count;
        let (from, to) = (edge(self.next), edge(self.next + 1));
        self.next += 1;
        Some((from, to - from))
    }
}
