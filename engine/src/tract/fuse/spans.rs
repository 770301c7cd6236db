//! Sums over named axes as products of matrices: which axes lie in memory as if they were one, and
//! which are looped over. What must never live here: graphs, arithmetic on values.

use crate::tract::compiled::stored_struct;

/// How far a step along an axis goes in the left operand, the right one and the result.
pub(super) type Steps = [usize; 3];

/// Where an axis stands in the left operand, the right one and the result.
pub(super) type Places = [Option<usize>; 3];

/// One axis, or several that lie in each tensor as if they were one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) size: usize,
    pub(super) steps: Steps,
}

/// `c[m, n] = Σ a[m, k] b[k, n]`, for each of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) batch: Vec<Span>,
    pub(super) m: Span,
    pub(super) n: Span,
    pub(super) k: Span,
    /// Whether the operands change places.
    pub(super) swapped: bool,
}

stored_struct!(Span { size, steps });
stored_struct!(Plan { batch, m, n, k, swapped });

impl Plan {
    /// The plan for tensors of these shapes; `None` where it is no product that our kernels can do.
    pub(super) fn of(axes: &[Places], shapes: [&[usize]; 3]) -> Option<Self> {
        let steps = shapes.map(row_major);
        let (mut batch, mut ms, mut ns, mut ks) = (vec![], vec![], vec![], vec![]);
        for places in axes {
            let mut sizes = [None; 3];
            for tensor in 0..3 {
                if let Some(at) = places[tensor] {
                    sizes[tensor] = Some(*shapes[tensor].get(at)?);
                }
            }
            let Some(size) = sizes.into_iter().flatten().max() else { continue };
            if sizes.into_iter().flatten().any(|other| other != size) {
                return None;
            }
            if size == 1 {
                continue;
            }
            let steps = [0, 1, 2].map(|tensor| places[tensor].map_or(0, |at| steps[tensor][at]));
            let span = Span { size, steps };
            match places.map(|place| place.is_some()) {
                [true, true, true] => batch.push(span),
                [true, false, true] => ms.push(span),
                [false, true, true] => ns.push(span),
                [true, true, false] => ks.push(span),
                _ => return None,
            }
        }
        let [ms, ns] = [ms, ns].map(|spans| merge(spans, 2));
        let ks = merge(ks, 0);
        arrange(batch, ms, ns, ks)
    }

    /// Where each product of the batch begins in the three tensors.
    pub(super) fn starts(&self) -> Vec<Steps> {
        let mut starts = vec![[0; 3]];
        for span in &self.batch {
            let along = |start: &Steps| {
                let start = *start;
                let steps = span.steps;
                (0..span.size)
                    .map(move |i| [0, 1, 2].map(|tensor| start[tensor] + i * steps[tensor]))
            };
            starts = starts.iter().flat_map(along).collect();
        }
        starts
    }
}

/// Which spans are the matrices', and which are looped over.
fn arrange(
    mut batch: Vec<Span>,
    mut ms: Vec<Span>,
    mut ns: Vec<Span>,
    ks: Vec<Span>,
) -> Option<Plan> {
    let one = Span { size: 1, steps: [0; 3] };
    let k = match ks[..] {
        [] => one,
        [k] => k,
        _ => return None,
    };
    // The last in the result is the matrix's; what does not lie with it is looped over.
    let mut m = ms.pop().unwrap_or(one);
    let mut n = ns.pop().unwrap_or(one);
    batch.extend(ms);
    batch.extend(ns);
    let swapped = n.steps[2] != 1 && m.steps[2] == 1;
    if swapped {
        let swap = |span: &mut Span| span.steps.swap(0, 1);
        std::mem::swap(&mut m, &mut n);
        batch.iter_mut().for_each(swap);
        swap(&mut m);
        swap(&mut n);
    }
    let mut k = k;
    if swapped {
        k.steps.swap(0, 1);
    }
    let in_rows = n.size == 1 || n.steps[2] == 1;
    in_rows.then_some(Plan { batch, m, n, k, swapped })
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        steps[at - 1] = steps[at] * shape[at];
    }
    steps
}

/// Joins spans that follow each other in all tensors, outermost first as `tensor` has them.
fn merge(mut spans: Vec<Span>, tensor: usize) -> Vec<Span> {
    spans.sort_by_key(|span| std::cmp::Reverse(span.steps[tensor]));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(outer)
                if outer
                    .steps
                    .iter()
                    .zip(span.steps)
                    .all(|(&outer, inner)| outer == inner * span.size) =>
            {
                *outer = Span { size: outer.size * span.size, steps: span.steps };
            }
            _ => merged.push(span),
        }
    }
    merged
}
