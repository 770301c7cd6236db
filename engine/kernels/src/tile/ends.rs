//! What a tile's sums begin with, and what happens to them on their way out.
//!
//! What must never live here: products.

use super::{PANEL, Strip};
use crate::epilogue::{Activation, Epilogue, ResidualOrder};
use crate::simd::{Kernel, Simd};

/// What the accumulators hold before the first product.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// One value for each row.
    RowBias(*const f32),
    /// One value for each column.
    ColumnBias(*const f32),
    /// What the output holds from the blocks of k before.
    Accumulate,
}

/// What happens to the sums on their way out.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    /// Values to be added, laid out as the output; or null.
    pub residual: *const f32,
    /// Before or after the activation.
    pub order: ResidualOrder,
    /// The function applied.
    pub activation: Activation,
}

impl Finish {
    /// For the blocks of k before the last.
    pub const NONE: Finish = Finish {
        residual: std::ptr::null(),
        order: ResidualOrder::BeforeActivation,
        activation: Activation::None,
    };

    /// All of the epilogue but the bias; `at` is where the output begins.
    pub fn of(epilogue: &Epilogue<'_>, at: usize) -> Finish {
        let residual = epilogue.residual.map_or(std::ptr::null(), |r| r.as_ptr().wrapping_add(at));
        Finish { residual, order: epilogue.order, activation: epilogue.activation }
    }

    /// Finishes `n` lanes whose place in the output is `at`.
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(&self, v: S::V, at: usize, n: usize) -> S::V {
        // SAFETY: the residual has the output's shape.
        unsafe {
            if self.residual.is_null() {
                return self.activation.apply::<S>(v);
            }
            let residual = S::load_first(self.residual.add(at), n);
            match self.order {
                ResidualOrder::BeforeActivation => self.activation.apply::<S>(S::add(v, residual)),
                ResidualOrder::AfterActivation => S::add(self.activation.apply::<S>(v), residual),
            }
        }
    }
}

impl Strip {
    #[inline(always)]
    pub(super) unsafe fn begin<S: Simd, const R: usize, const P: usize>(
        &self,
        row: usize,
        column: usize,
        columns: usize,
    ) -> [[S::V; P]; R] {
        let at = row * self.c_step + column;
        // SAFETY: as for `tile`; lanes behind the last column are not touched.
        unsafe {
            let mut acc = [[S::zero(); P]; R];
            match self.start {
                Start::Zero => {}
                Start::RowBias(bias) => {
                    for r in 0..R {
                        acc[r] = [S::splat(*bias.add(row + r)); P];
                    }
                }
                Start::ColumnBias(bias) => {
                    let mut line = [S::zero(); P];
                    for p in 0..P {
                        let n = (columns - p * PANEL).min(PANEL);
                        line[p] = S::load_first(bias.add(column + p * PANEL), n);
                    }
                    for r in 0..R {
                        acc[r] = line;
                    }
                }
                Start::Accumulate if columns == P * PANEL => {
                    for r in 0..R {
                        for p in 0..P {
                            acc[r][p] = S::load(self.c.add(at + r * self.c_step + p * PANEL));
                        }
                    }
                }
                Start::Accumulate => {
                    for r in 0..R {
                        for p in 0..P {
                            let n = (columns - p * PANEL).min(PANEL);
                            acc[r][p] =
                                S::load_first(self.c.add(at + r * self.c_step + p * PANEL), n);
                        }
                    }
                }
            }
            acc
        }
    }

    /// A tile's values and what stands at its place in a residual, if there is one.
    #[inline(always)]
    unsafe fn plus<S: Simd, const R: usize, const P: usize>(
        &self,
        mut values: [[S::V; P]; R],
        residual: *const f32,
        at: usize,
    ) -> [[S::V; P]; R] {
        if residual.is_null() {
            return values;
        }
        for r in 0..R {
            for p in 0..P {
                // SAFETY: as for `tile`; the residual has the output's shape.
                unsafe {
                    let residual = S::load(residual.add(at + r * self.c_step + p * PANEL));
                    values[r][p] = S::add(values[r][p], residual);
                }
            }
        }
        values
    }

    #[inline(always)]
    pub(super) unsafe fn end<S: Simd, const R: usize, const P: usize>(
        &self,
        acc: [[S::V; P]; R],
        at: usize,
        columns: usize,
    ) {
        let Finish { residual, order, activation } = self.finish;
        // SAFETY: as for `tile`.
        unsafe {
            if let (true, Some((low, high))) = (columns == P * PANEL, activation.bounds()) {
                let (low, high) = (S::splat(low), S::splat(high));
                let before = order == ResidualOrder::BeforeActivation;
                let acc = if before { self.plus::<S, R, P>(acc, residual, at) } else { acc };
                let mut results = [[S::zero(); P]; R];
                for r in 0..R {
                    for p in 0..P {
                        results[r][p] = S::min(high, S::max(low, acc[r][p]));
                    }
                }
                let after = if before { std::ptr::null() } else { residual };
                let results = self.plus::<S, R, P>(results, after, at);
                for r in 0..R {
                    for p in 0..P {
                        S::store(self.c.add(at + r * self.c_step + p * PANEL), results[r][p]);
                    }
                }
                return;
            }
            // The rest goes through memory, to a function that all tiles share.
            let mut sums = [[[0.0f32; PANEL]; P]; R];
            for r in 0..R {
                for p in 0..P {
                    S::store(sums[r][p].as_mut_ptr(), acc[r][p]);
                }
            }
            let sums = sums.as_ptr().cast();
            S::call(Write { strip: self, sums, rows: R, panels: P, at, columns });
        }
    }
}

/// Finishes a tile's sums `[rows][panels][16]` and writes those that lie inside the output.
struct Write<'a> {
    strip: &'a Strip,
    sums: *const f32,
    rows: usize,
    panels: usize,
    at: usize,
    columns: usize,
}

impl Kernel for Write<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in 0..self.rows {
            for panel in 0..self.panels {
                let column = panel * PANEL;
                let n = (self.columns - column).min(PANEL);
                let place = self.at + row * self.strip.c_step + column;
                // SAFETY: the tile lies inside the strip, whose pointers the caller vouches for.
                unsafe {
                    let sums = S::Wide::load(self.sums.add((row * self.panels + panel) * PANEL));
                    let v = self.strip.finish.apply::<S::Wide>(sums, place, n);
                    S::Wide::store_first(self.strip.c.add(place), v, n);
                }
            }
        }
    }
}
