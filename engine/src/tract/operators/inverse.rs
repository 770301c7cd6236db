//! Inverse, of ONNX Runtime's own operators.

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_hir::internal::*;

use super::super::bodies;
use super::kernel::{Form, Kernel, built, expect_datum, one};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Inverse", |_, node| built(node, Inverse));
}

/// Of each matrix in the last two axes.
#[derive(Debug)]
struct Inverse;

/// Columns that are eliminated together: what is taken off a row by them is done in one pass over it,
/// while their rows are in the cache.
const PANEL: usize = 32;

impl Inverse {
    /// By elimination with the largest pivot first, in rows of the matrix and of what becomes its
    /// inverse. A pivot of zero makes infinities and what is not a number, as in ONNX Runtime.
    fn invert(matrix: &mut [f64], size: usize) -> TractResult<()> {
        let width = 2 * size;
        let mut rows = vec![0.0; size * width];
        for (at, (row, from)) in
            rows.chunks_exact_mut(width).zip(matrix.chunks_exact(size)).enumerate()
        {
            row[..size].copy_from_slice(from);
            row[size + at] = 1.0;
        }
        for start in (0..size).step_by(PANEL) {
            bodies::ask()?;
            let end = size.min(start + PANEL);
            (start..end).for_each(|column| eliminate(&mut rows, size, column, end));
            for at in start + 1..size {
                let (above, row) = rows.split_at_mut(at * width);
                let (shares, row) = row[..width].split_at_mut(end);
                let pivots = above.chunks_exact(width).skip(start).map(|pivot| &pivot[end..]);
                take_off(row, &shares[start..end.min(at)], pivots);
            }
        }
        for start in (0..size).step_by(PANEL).rev() {
            bodies::ask()?;
            let end = size.min(start + PANEL);
            for at in (0..end).rev() {
                let first = start.max(at + 1);
                let (row, below) = rows[at * width..].split_at_mut(width);
                let (shares, row) = row.split_at_mut(size);
                let solved = below.chunks_exact(width).skip(first - at - 1);
                take_off(row, &shares[first..end], solved.map(|solved| &solved[size..]));
                if at >= start {
                    row.iter_mut().for_each(|value| *value /= shares[at]);
                }
            }
        }
        for (row, to) in rows.chunks_exact(width).zip(matrix.chunks_exact_mut(size)) {
            to.copy_from_slice(&row[size..]);
        }
        Ok(())
    }
}

/// Makes zeros of a column below its pivot, as far as the columns before `end` go, and puts the rows'
/// shares of the pivot's row in their place.
fn eliminate(rows: &mut [f64], size: usize, column: usize, end: usize) {
    let width = 2 * size;
    let size_of = |row: usize| rows[row * width + column].abs();
    // Of equal ones the last would be taken: so the first is, as ONNX Runtime does.
    let pivot = (column..size).rev().max_by(|&a, &b| size_of(a).total_cmp(&size_of(b)));
    let pivot = pivot.unwrap_or(column);
    let (above, below) = rows.split_at_mut((column + 1) * width);
    let row = &mut above[column * width..];
    if pivot != column {
        row.swap_with_slice(&mut below[(pivot - column - 1) * width..][..width]);
    }
    if row[column] == 0.0 {
        return;
    }
    for other in below.chunks_exact_mut(width) {
        let share = other[column] / row[column];
        other[column] = share;
        let pairs = other[column + 1..end].iter_mut().zip(&row[column + 1..end]);
        pairs.for_each(|(to, from)| *to -= share * from);
    }
}

/// Takes its shares of others off a row, four at a time: it is read and written once for them.
fn take_off<'a>(row: &mut [f64], shares: &[f64], mut others: impl Iterator<Item = &'a [f64]>) {
    let (fours, rest) = shares.as_chunks::<4>();
    for &[p, q, r, s] in fours {
        let [Some(a), Some(b), Some(c), Some(d)] = [(); 4].map(|()| others.next()) else { return };
        let others = a.iter().zip(b).zip(c.iter().zip(d));
        for (to, ((a, b), (c, d))) in row.iter_mut().zip(others) {
            *to -= p * a + q * b + r * c + s * d;
        }
    }
    for (share, other) in rest.iter().zip(others) {
        row.iter_mut().zip(other).for_each(|(to, from)| *to -= share * from);
    }
}

impl Kernel for Inverse {
    fn name(&self) -> &'static str {
        "Inverse"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::F16, DatumType::F32, DatumType::F64])?;
        ensure!(input.shape.len() >= 2, "expected matrices");
        Ok(tvec![Form::new(input.datum, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let [.., rows, columns] = *input.shape() else { bail!("expected matrices") };
        ensure!(rows == columns, "matrices of {rows} × {columns} have no inverse");
        let mut matrices = input.cast_to::<f64>()?.into_owned();
        let mut plain = matrices.try_as_plain_ram_mut()?;
        for matrix in plain.as_slice_mut::<f64>()?.chunks_exact_mut((rows * columns).max(1)) {
            Self::invert(matrix, rows)?;
        }
        Ok(tvec![matrices.cast_to_dt(input.datum_type())?.into_owned()])
    }
}
