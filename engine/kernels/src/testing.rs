//! What the tests of kernels share: random numbers and the tolerance.

use std::thread;

use crate::simd::Level;
use crate::team::{Room, Team};

/// A thread for each part.
pub(crate) struct Threads(pub usize);

// SAFETY: a scope of threads ends with them.
unsafe impl Team for Threads {
    fn width(&self) -> usize {
        self.0
    }

    fn share(&self, parts: usize, work: &(dyn Fn(usize, &mut Room) + Sync)) {
        thread::scope(|scope| {
            for part in 0..parts {
                scope.spawn(move || {
                    let mut room = Room::default();
                    // Rubbish would show in values that are read before they are written.
                    room.panels.room(1000).fill(f32::NAN);
                    work(part, &mut room);
                });
            }
        });
    }
}

/// A small generator (xorshift), so that failures repeat.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() >> 16) as usize % (high - low + 1)
    }

    /// Values from -1 to 1.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// The levels that this machine can run.
pub(crate) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.available())
}

/// Compares with sums made in f64; `k` products of values up to 1 each.
pub(crate) fn assert_close(got: &[f32], wanted: &[f64], k: usize, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let tolerance = 1e-6 * (k as f64).sqrt().max(1.0) * 4.0;
    for (i, (g, w)) in got.iter().zip(wanted).enumerate() {
        assert!((f64::from(*g) - w).abs() <= tolerance, "{what}: value {i} is {g}, wanted {w}");
    }
}

/// The epilogue on one value, by the book.
pub(crate) fn finish(epilogue: &crate::Epilogue<'_>, sum: f64, bias: usize, at: usize) -> f64 {
    use crate::{Activation, ResidualOrder};
    let residual = epilogue.residual.map_or(0.0, |r| f64::from(r[at]));
    let x = sum + epilogue.bias.map_or(0.0, |b| f64::from(b[bias]));
    let before = epilogue.order == ResidualOrder::BeforeActivation;
    let x = if before { x + residual } else { x };
    let y = match epilogue.activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Clip { min, max } => x.max(f64::from(min)).min(f64::from(max)),
        Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Activation::HardSigmoid { alpha, beta } => {
            (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0)
        }
        // Sums that lie between two steps may go either way.
        Activation::Steps(_) => unreachable!("tested by itself"),
        Activation::LeakyRelu(alpha) => {
            if x > 0.0 {
                x
            } else {
                f64::from(alpha) * x
            }
        }
    };
    if before { y } else { y + residual }
}

/// One of everything that an epilogue may be.
pub(crate) fn epilogue<'a>(
    random: &mut Random,
    bias: &'a [f32],
    residual: &'a [f32],
) -> crate::Epilogue<'a> {
    use crate::{Activation, Epilogue, ResidualOrder};
    let some = |random: &mut Random| random.between(0, 2) > 0;
    Epilogue {
        bias: some(random).then_some(bias),
        residual: some(random).then_some(residual),
        order: if some(random) {
            ResidualOrder::BeforeActivation
        } else {
            ResidualOrder::AfterActivation
        },
        activation: match random.between(0, 5) {
            0 => Activation::None,
            1 => Activation::Relu,
            2 => Activation::Clip { min: -0.5, max: 2.0 },
            3 => Activation::HardSwish,
            4 => Activation::HardSigmoid { alpha: 0.3, beta: 0.4 },
            _ => Activation::LeakyRelu(0.1),
        },
    }
}
