//! Trees laid out for speed. A node's two children stand side by side, so that a step is a
//! load, a comparison and an addition without a branch; a leaf steps to itself, so that several
//! trees walk abreast and hide each other's latency.

use super::super::scores::Real;
use super::ensemble::{Ensemble, Node, Test, Weight};

/// Trees that walk abreast.
const ABREAST: usize = 8;
/// Rows that walk through one group of trees before the next group is fetched.
pub(super) const ROWS_AT_A_TIME: usize = 32;
/// Steps between two looks at whether all have arrived.
const STRIDE: u32 = 4;
/// Marks a node whose first child takes NaN.
const NAN_FIRST: u32 = 1 << 31;

/// Goes to `next` where the feature is at most `threshold`, else to the node after that.
#[derive(Debug, Clone, Copy)]
struct Step<T> {
    threshold: T,
    /// With [`NAN_FIRST`].
    feature: u32,
    next: u32,
}

#[derive(Debug)]
pub(super) struct Forest<T> {
    steps: Vec<Step<T>>,
    groups: Vec<Group>,
    trees: usize,
    features: usize,
    /// For each step that is a leaf: where its weights start and end.
    leaves: Vec<(u32, u32)>,
    weights: Vec<Weight<T>>,
}

/// Trees of about the same depth; a group that is not full repeats its last.
#[derive(Debug)]
struct Group {
    starts: [u32; ABREAST],
    trees: [u32; ABREAST],
    depth: u32,
    count: usize,
}

impl<T: Real> Forest<T> {
    /// None where it holds tests that are no single comparison of order, or shared nodes.
    pub(super) fn new(ensemble: &Ensemble) -> Option<Self> {
        let odd = |node: &Node| matches!(node.test, Test::Equal | Test::NotEqual | Test::Member);
        // A step's children are counted in 32 bits, and each node has a place of its own.
        if ensemble.shared || ensemble.nodes.iter().any(odd) || ensemble.nodes.len() >= 1 << 30 {
            return None;
        }
        let mut forest = Self {
            steps: Vec::with_capacity(ensemble.nodes.len()),
            groups: Vec::new(),
            trees: ensemble.roots.len(),
            features: ensemble.features.max(1),
            leaves: Vec::with_capacity(ensemble.nodes.len()),
            weights: ensemble.weights.iter().map(|weight| weight.to()).collect(),
        };
        let trees = ensemble.roots.iter().zip(0..);
        let mut trees: Vec<(u32, u32, u32)> = trees
            .map(|(&root, tree)| {
                let start = forest.steps.len() as u32;
                (forest.place(ensemble, root), start, tree)
            })
            .collect();
        trees.sort_unstable();
        forest.groups = trees.chunks(ABREAST).map(group).collect();
        Some(forest)
    }

    /// Lays out one tree, true children first, and returns its depth.
    fn place(&mut self, ensemble: &Ensemble, root: u32) -> u32 {
        let mut deepest = 0;
        let mut to_place = vec![(root, self.reserve(1), 0)];
        while let Some((node, place, depth)) = to_place.pop() {
            let node = &ensemble.nodes[node as usize];
            deepest = deepest.max(depth);
            if node.test == Test::Leaf {
                self.leaves[place as usize] = (node.first, node.second);
                continue;
            }
            let next = self.reserve(2);
            let (step, first, second) = step(node, next);
            self.steps[place as usize] = step;
            to_place.push((second, next + 1, depth + 1));
            to_place.push((first, next, depth + 1));
        }
        deepest
    }

    /// Takes places for `count` steps: leaves, until they are something else.
    fn reserve(&mut self, count: u32) -> u32 {
        let start = self.steps.len() as u32;
        for next in start..start + count {
            self.steps.push(Step { threshold: T::INFINITY, feature: NAN_FIRST, next });
            self.leaves.push((0, 0));
        }
        start
    }

    /// What stands where [`Self::walk`] says.
    pub(super) fn weights(&self, (start, end): (u32, u32)) -> &[Weight<T>] {
        &self.weights[start as usize..end as usize]
    }

    /// Walks up to [`ROWS_AT_A_TIME`] rows of `columns` values each through all trees, and writes
    /// where each tree's weights stand, a row after the other. Rows have been checked to have as
    /// many columns as the ensemble has features, and one at least.
    pub(super) fn walk(&self, rows: &[T], columns: usize, found: &mut [(u32, u32)]) {
        let mut has_nan = [false; ROWS_AT_A_TIME];
        for (row, has_nan) in rows.chunks_exact(columns).zip(&mut has_nan) {
            *has_nan = row.iter().any(|value| value.is_nan());
        }
        for group in &self.groups {
            let rows = rows.chunks_exact(columns).zip(&has_nan);
            for ((row, &has_nan), found) in rows.zip(found.chunks_exact_mut(self.trees)) {
                let row = &row[..self.features.max(1)];
                match (has_nan, group.count) {
                    (true, _) => self.walk_group::<true, ABREAST>(group, row, found),
                    (false, 1) => self.walk_group::<false, 1>(group, row, found),
                    (false, 2..5) => self.walk_group::<false, 4>(group, row, found),
                    (false, _) => self.walk_group::<false, ABREAST>(group, row, found),
                }
            }
        }
    }

    /// Walks the first `WIDTH` trees of the group.
    fn walk_group<const NAN: bool, const WIDTH: usize>(
        &self,
        group: &Group,
        row: &[T],
        found: &mut [(u32, u32)],
    ) {
        let mut at: [u32; WIDTH] = std::array::from_fn(|lane| group.starts[lane]);
        let mut left = group.depth;
        while left > 0 {
            let before = at;
            for _ in 0..STRIDE.min(left) {
                for at in &mut at {
                    let step = &self.steps[*at as usize];
                    let value = row[(step.feature & !NAN_FIRST) as usize];
                    let mut is_first = value <= step.threshold;
                    if NAN {
                        is_first |= value.is_nan() & (step.feature & NAN_FIRST != 0);
                    }
                    *at = step.next + u32::from(!is_first);
                }
            }
            if at == before {
                break;
            }
            left = left.saturating_sub(STRIDE);
        }
        for (&tree, &at) in group.trees.iter().zip(&at) {
            found[tree as usize] = self.leaves[at as usize];
        }
    }
}

fn group(trees: &[(u32, u32, u32)]) -> Group {
    let of = |lane: usize| trees[lane.min(trees.len() - 1)];
    Group {
        starts: std::array::from_fn(|lane| of(lane).1),
        trees: std::array::from_fn(|lane| of(lane).2),
        depth: trees.iter().map(|tree| tree.0).max().unwrap_or(0),
        count: trees.len(),
    }
}

/// Writes a test as "at most": `x < t` is `x <= the number before t`, and `x > t` is `x <= t`
/// with the children changed over. A threshold of infinity stands for always, NaN for never.
fn step<T: Real>(node: &Node, next: u32) -> (Step<T>, u32, u32) {
    let threshold = T::from_f64(node.threshold);
    let nothing_is_less = threshold.is_nan() || threshold == T::NEG_INFINITY;
    let below = if nothing_is_less { T::NAN } else { threshold.next_down() };
    let is_or_always = if threshold.is_nan() { T::INFINITY } else { threshold };
    let (threshold, turned) = match node.test {
        Test::Less => (below, false),
        Test::GreaterOrEqual if threshold.is_nan() => (T::INFINITY, true),
        Test::GreaterOrEqual => (below, true),
        Test::Greater => (is_or_always, true),
        _ => (threshold, false),
    };
    let (first, second) =
        if turned { (node.second, node.first) } else { (node.first, node.second) };
    let nan_first = if node.missing_is_true != turned { NAN_FIRST } else { 0 };
    (Step { threshold, feature: node.feature | nan_first, next }, first, second)
}
