//! Trees as the file states them, checked: every index is in range and no walk can be endless.

use tract_onnx::tract_hir::internal::*;

use super::super::scores::Real;

/// How a node decides; a comparison with NaN is false, save for `NotEqual`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    LessOrEqual,
    Less,
    GreaterOrEqual,
    Greater,
    Equal,
    NotEqual,
    /// Is it one of a set: `first` is the set's index.
    Member,
    Leaf,
}

/// A branch or a leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) threshold: f64,
    pub(super) feature: u32,
    /// A branch's true child, or the first of a leaf's weights.
    pub(super) first: u32,
    /// A branch's false child, or one past the last of a leaf's weights.
    pub(super) second: u32,
    pub(super) test: Test,
    /// Whether a NaN goes to the true child, whatever the test says.
    pub(super) missing_is_true: bool,
}

/// What a leaf adds to one output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight<T = f64> {
    pub(super) output: u32,
    pub(super) value: T,
}

impl Weight {
    pub(super) fn to<T: Real>(self) -> Weight<T> {
        Weight { output: self.output, value: T::from_f64(self.value) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Ensemble {
    pub(super) nodes: Vec<Node>,
    /// The first node of each tree.
    pub(super) roots: Vec<u32>,
    pub(super) weights: Vec<Weight>,
    /// Each sorted.
    pub(super) sets: Vec<Vec<f64>>,
    /// Targets or classes, at least one.
    pub(super) outputs: usize,
    /// Features a row must have.
    pub(super) features: usize,
    /// Whether one child has two parents somewhere, which "one of these values" is written as.
    pub(super) shared: bool,
}

/// Features, outputs and nodes are counted in 32 bits; a feature's highest bit is a mark.
const MOST: usize = 1 << 31;

impl Ensemble {
    /// Checks it and fills in what follows from the rest.
    ///
    /// # Errors
    /// An index out of range or a walk without end.
    pub(super) fn checked(mut self) -> TractResult<Self> {
        let nodes = self.nodes.len();
        ensure!(nodes < MOST && self.weights.len() < MOST, "{nodes} nodes are too many");
        ensure!((1..MOST).contains(&self.outputs), "{} outputs", self.outputs);
        ensure!(!self.roots.is_empty(), "no trees");
        ensure!(self.roots.iter().all(|&root| (root as usize) < nodes), "a root out of range");
        for node in &self.nodes {
            let (first, second) = (node.first as usize, node.second as usize);
            if node.test == Test::Leaf {
                ensure!(first <= second && second <= self.weights.len(), "weights out of range");
                continue;
            }
            ensure!((node.feature as usize) < MOST, "feature {} is too high", node.feature);
            ensure!(first < nodes && second < nodes, "a child out of range");
            let set = node.threshold as usize;
            ensure!(node.test != Test::Member || set < self.sets.len(), "a set out of range");
        }
        let outputs = self.outputs;
        for weight in &self.weights {
            let output = weight.output;
            ensure!((output as usize) < outputs, "output {output} of {outputs}");
        }
        let branches = self.nodes.iter().filter(|node| node.test != Test::Leaf);
        self.features = branches.map(|node| node.feature as usize + 1).max().unwrap_or(0);
        self.shared = self.find_shared()?;
        for set in &mut self.sets {
            set.iter_mut().for_each(|value| *value = one_zero(*value));
            set.sort_by(f64::total_cmp);
        }
        Ok(self)
    }

    /// Leaves each leaf at most one weight.
    pub(super) fn keep_first_weights(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.test == Test::Leaf) {
            node.second = node.second.min(node.first + 1);
        }
    }

    /// Visits every node once, depth first.
    ///
    /// # Errors
    /// A node is its own ancestor.
    fn find_shared(&self) -> TractResult<bool> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.nodes.len()];
        let mut shared = false;
        let mut stack = Vec::new();
        for &root in &self.roots {
            stack.push(root);
            while let Some(&at) = stack.last() {
                let index = at as usize;
                if marks[index] != Mark::New {
                    stack.pop();
                    shared |= marks[index] == Mark::Done;
                    marks[index] = Mark::Done;
                    continue;
                }
                marks[index] = Mark::Open;
                let node = &self.nodes[index];
                if node.test == Test::Leaf {
                    continue;
                }
                for child in [node.second, node.first] {
                    let mark = marks[child as usize];
                    ensure!(mark != Mark::Open, "a node that is its own ancestor");
                    stack.push(child);
                }
            }
        }
        Ok(shared)
    }

    /// Walks one tree as the file states it: slower than a forest, for what a forest lacks.
    /// `row` has at least `features` values.
    pub(super) fn leaf(&self, root: u32, row: impl Fn(usize) -> f64) -> &[Weight] {
        let mut node = &self.nodes[root as usize];
        loop {
            if node.test == Test::Leaf {
                return &self.weights[node.first as usize..node.second as usize];
            }
            let value = row(node.feature as usize);
            let is_true = match node.test {
                _ if value.is_nan() && node.missing_is_true => true,
                Test::LessOrEqual => value <= node.threshold,
                Test::Less => value < node.threshold,
                Test::GreaterOrEqual => value >= node.threshold,
                Test::Greater => value > node.threshold,
                Test::Equal => value == node.threshold,
                Test::NotEqual => value != node.threshold,
                Test::Member => contains(&self.sets[node.threshold as usize], value),
                Test::Leaf => false,
            };
            node = &self.nodes[if is_true { node.first } else { node.second } as usize];
        }
    }
}

fn contains(sorted: &[f64], value: f64) -> bool {
    sorted.binary_search_by(|known| known.total_cmp(&one_zero(value))).is_ok()
}

/// Makes -0 into 0: they are equal, but not to a total order.
fn one_zero(value: f64) -> f64 {
    value + 0.0
}
