//! The attributes of the three operators as one [`Ensemble`].

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::super::attributes::{Numbers, integers, numbers, strings, tensor_numbers};
use super::ensemble::{Ensemble, Node, Test, Weight};

/// An ensemble, and whether its numbers are doubles.
pub(super) type Read = TractResult<(Ensemble, bool)>;

/// Reads `nodes_*` and, by their prefix, the leaves' weights of ai.onnx.ml 1 and 3.
///
/// # Errors
/// Attributes that do not fit together.
pub(super) fn read_lists(
    context: &ParsingContext,
    node: &NodeProto,
    prefix: &str,
    outputs: usize,
) -> Read {
    let tree_ids = integers(node, "nodes_treeids")?;
    let count = tree_ids.len();
    let listed = |name: &str| of_length(integers(node, name)?, count, name);
    let node_ids = listed("nodes_nodeids")?;
    let (first_ids, second_ids) = (listed("nodes_truenodeids")?, listed("nodes_falsenodeids")?);
    let features = listed("nodes_featureids")?;
    let thresholds = numbers(context, node, "nodes_values")?;
    of_length(&thresholds.values, count, "nodes_values")?;
    let modes = strings(node, "nodes_modes")?;
    of_length(&modes, count, "nodes_modes")?;
    let missing = missing_marks(node, count)?;

    let mut ensemble = Ensemble { outputs, ..Ensemble::default() };
    let places = Places::new(tree_ids, node_ids)?;
    ensemble.roots.extend(places.starts.values());
    ensemble.roots.sort_unstable();
    let (spans, are_doubles) = read_weights(context, node, prefix, &places, &mut ensemble)?;
    for place in 0..count {
        let test = test_of(&modes[place])?;
        let (first, second) = if test == Test::Leaf {
            (spans[place], spans[place + 1])
        } else {
            let child = |id: i64| places.find(tree_ids[place], id);
            (child(first_ids[place])?, child(second_ids[place])?)
        };
        ensemble.nodes.push(Node {
            threshold: thresholds.values[place],
            feature: match test {
                Test::Leaf => 0,
                _ => feature(features[place])?,
            },
            first,
            second,
            test,
            missing_is_true: missing.get(place).is_some_and(|&mark| mark != 0),
        });
    }
    Ok((ensemble.checked()?, are_doubles || thresholds.are_doubles))
}

/// Where the nodes of each tree stand: mostly in the order of their ids, so that a search is
/// rarely needed.
struct Places<'a> {
    node_ids: &'a [i64],
    tree_ids: &'a [i64],
    starts: HashMap<i64, u32>,
    astray: HashMap<(i64, i64), u32>,
}

impl<'a> Places<'a> {
    /// # Errors
    /// A tree in pieces, or a node that is there twice.
    fn new(tree_ids: &'a [i64], node_ids: &'a [i64]) -> TractResult<Self> {
        let (starts, astray) = (HashMap::new(), HashMap::new());
        let mut places = Self { node_ids, tree_ids, starts, astray };
        for (place, &tree) in tree_ids.iter().enumerate() {
            if place == 0 || tree_ids[place - 1] != tree {
                let is_new = places.starts.insert(tree, place as u32).is_none();
                ensure!(is_new, "the nodes of tree {tree} do not stand together");
            }
        }
        for (place, (&tree, &id)) in tree_ids.iter().zip(node_ids).enumerate() {
            if places.in_order(tree, id) != Some(place as u32) {
                let is_new = places.find(tree, id).is_err();
                ensure!(is_new, "node {id} of tree {tree} is there twice");
                places.astray.insert((tree, id), place as u32);
            }
        }
        Ok(places)
    }

    /// The place as many steps from the tree's start as the id says, if that is the node.
    fn in_order(&self, tree: i64, id: i64) -> Option<u32> {
        let start = *self.starts.get(&tree)?;
        let place = u32::try_from(id).ok()?.checked_add(start)?;
        let found = (self.tree_ids.get(place as usize)?, self.node_ids.get(place as usize)?);
        (found == (&tree, &id)).then_some(place)
    }

    /// # Errors
    /// No such node.
    fn find(&self, tree: i64, id: i64) -> TractResult<u32> {
        let place = self.in_order(tree, id).or_else(|| self.astray.get(&(tree, id)).copied());
        place.with_context(|| format!("tree {tree} has no node {id}"))
    }
}

/// Puts the weights in the order of their nodes, and says where each node's start; and whether
/// they are doubles.
fn read_weights(
    context: &ParsingContext,
    node: &NodeProto,
    prefix: &str,
    places: &Places,
    ensemble: &mut Ensemble,
) -> TractResult<(Vec<u32>, bool)> {
    let name = |suffix: &str| format!("{prefix}_{suffix}");
    let ids = integers(node, &name("ids"))?;
    let listed = |suffix: &str| of_length(integers(node, &name(suffix))?, ids.len(), &name(suffix));
    let (node_ids, tree_ids) = (listed("nodeids")?, listed("treeids")?);
    let Numbers { values, are_doubles } = numbers(context, node, &name("weights"))?;
    of_length(&values, ids.len(), &name("weights"))?;
    let owners = tree_ids.iter().zip(node_ids).map(|(&tree, &id)| places.find(tree, id));
    let owners: Vec<u32> = owners.collect::<TractResult<_>>()?;

    let mut spans = vec![0u32; places.node_ids.len() + 1];
    owners.iter().for_each(|&owner| spans[owner as usize + 1] += 1);
    let mut total = 0;
    for span in &mut spans {
        total += *span;
        *span = total;
    }
    let mut next = spans.clone();
    ensemble.weights = vec![Weight { output: 0, value: 0.0 }; ids.len()];
    for ((&id, &value), &owner) in ids.iter().zip(&values).zip(&owners) {
        let output = u32::try_from(id).ok().filter(|&id| (id as usize) < ensemble.outputs);
        let output = output.with_context(|| format!("output {id} of {}", ensemble.outputs))?;
        let place = &mut next[owner as usize];
        ensemble.weights[*place as usize] = Weight { output, value };
        *place += 1;
    }
    Ok((spans, are_doubles))
}

/// Reads the attributes of ai.onnx.ml 5's TreeEnsemble.
///
/// # Errors
/// Attributes that do not fit together.
pub(super) fn read_arrays(context: &ParsingContext, node: &NodeProto) -> Read {
    let features = integers(node, "nodes_featureids")?;
    let count = features.len();
    let listed = |name: &str| of_length(integers(node, name)?, count, name);
    let children = [
        (listed("nodes_truenodeids")?, listed("nodes_trueleafs")?),
        (listed("nodes_falsenodeids")?, listed("nodes_falseleafs")?),
    ];
    let splits = tensor_numbers(context, node, "nodes_splits")?;
    of_length(&splits.values, count, "nodes_splits")?;
    let modes = tensor_numbers(context, node, "nodes_modes")?;
    of_length(&modes.values, count, "nodes_modes")?;
    let missing = missing_marks(node, count)?;
    let targets = integers(node, "leaf_targetids")?;
    let weights = tensor_numbers(context, node, "leaf_weights")?;
    of_length(&weights.values, targets.len(), "leaf_weights")?;
    let sets = tensor_numbers(context, node, "membership_values")?.values;
    let mut sets = sets.split(|value| value.is_nan()).map(<[f64]>::to_vec);

    let outputs = node.get_attr::<i64>("n_targets")?;
    let outputs = usize::try_from(outputs).with_context(|| format!("n_targets {outputs}"))?;
    let mut ensemble = Ensemble { outputs, ..Ensemble::default() };
    for (&target, &value) in targets.iter().zip(&weights.values) {
        let output = u32::try_from(target).with_context(|| format!("target {target}"))?;
        ensemble.weights.push(Weight { output, value });
    }
    let mut leaves = Vec::new();
    for place in 0..count {
        let test = test_numbered(modes.values[place])?;
        let mut threshold = splits.values[place];
        if test == Test::Member {
            threshold = ensemble.sets.len() as f64;
            ensemble.sets.push(sets.next().context("fewer sets than members of sets")?);
        }
        let [first, second] = children.map(|(ids, are_leaves)| (ids[place], are_leaves[place]));
        let mut child = |(id, is_leaf): (i64, i64)| {
            let limit = if is_leaf == 0 { count } else { targets.len() };
            let id = u32::try_from(id).ok().filter(|&id| (id as usize) < limit);
            let id = id.context("a child out of range")?;
            // A leaf becomes a node of its own for each branch that points to it.
            if is_leaf != 0 {
                leaves.push(id);
                return u32::try_from(count + leaves.len() - 1).context("too many leaves");
            }
            Ok(id)
        };
        ensemble.nodes.push(Node {
            threshold,
            feature: feature(features[place])?,
            first: child(first)?,
            second: child(second)?,
            test,
            missing_is_true: missing.get(place).is_some_and(|&mark| mark != 0),
        });
    }
    ensemble.nodes.extend(leaves.into_iter().map(|weight| Node {
        threshold: 0.0,
        feature: 0,
        first: weight,
        second: weight + 1,
        test: Test::Leaf,
        missing_is_true: false,
    }));
    for &root in integers(node, "tree_roots")? {
        let in_range = u32::try_from(root).ok().filter(|&root| (root as usize) < count);
        ensemble.roots.push(in_range.with_context(|| format!("root {root} of {count} nodes"))?);
    }
    Ok((ensemble.checked()?, splits.are_doubles || weights.are_doubles))
}

fn missing_marks(node: &NodeProto, count: usize) -> TractResult<&[i64]> {
    let name = "nodes_missing_value_tracks_true";
    match integers(node, name)? {
        [] => Ok(&[]),
        marks => of_length(marks, count, name),
    }
}

fn of_length<'a, T>(list: &'a [T], count: usize, name: &str) -> TractResult<&'a [T]> {
    ensure!(list.len() == count, "{name} has {} elements, expected {count}", list.len());
    Ok(list)
}

fn feature(id: i64) -> TractResult<u32> {
    u32::try_from(id).with_context(|| format!("feature {id}"))
}

fn test_of(mode: &str) -> TractResult<Test> {
    Ok(match mode {
        "BRANCH_LEQ" => Test::LessOrEqual,
        "BRANCH_LT" => Test::Less,
        "BRANCH_GTE" => Test::GreaterOrEqual,
        "BRANCH_GT" => Test::Greater,
        "BRANCH_EQ" => Test::Equal,
        "BRANCH_NEQ" => Test::NotEqual,
        "LEAF" => Test::Leaf,
        _ => bail!("unknown node mode {mode:?}"),
    })
}

fn test_numbered(mode: f64) -> TractResult<Test> {
    let tests = [
        Test::LessOrEqual,
        Test::Less,
        Test::GreaterOrEqual,
        Test::Greater,
        Test::Equal,
        Test::NotEqual,
        Test::Member,
    ];
    let test = tests.get(mode as usize).filter(|_| mode >= 0.0).copied();
    test.with_context(|| format!("unknown node mode {mode}"))
}
