//! The attributes of the three operators as one [`Ensemble`].

use std::collections::HashSet;

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
    let mut places = HashMap::with_capacity(count);
    for (place, (&tree, &id)) in tree_ids.iter().zip(node_ids).enumerate() {
        let is_new = places.insert((tree, id), place as u32).is_none();
        ensure!(is_new, "node {id} of tree {tree} is there twice");
    }
    let mut seen = HashSet::new();
    for (place, &tree) in tree_ids.iter().enumerate() {
        if place == 0 || tree_ids[place - 1] != tree {
            ensure!(seen.insert(tree), "the nodes of tree {tree} do not stand together");
            ensemble.roots.push(place as u32);
        }
    }
    let (mut weights, are_doubles) = read_weights(context, node, prefix, &places, outputs)?;
    for place in 0..count {
        let test = test_of(&modes[place])?;
        let (first, second) = if test == Test::Leaf {
            let start = ensemble.weights.len();
            ensemble.weights.append(&mut weights[place]);
            (start as u32, ensemble.weights.len() as u32)
        } else {
            let child = |id: i64| {
                let child = places.get(&(tree_ids[place], id)).copied();
                child.with_context(|| format!("tree {} has no node {id}", tree_ids[place]))
            };
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

/// Each node's weights, and whether they are doubles.
fn read_weights(
    context: &ParsingContext,
    node: &NodeProto,
    prefix: &str,
    places: &HashMap<(i64, i64), u32>,
    outputs: usize,
) -> TractResult<(Vec<Vec<Weight>>, bool)> {
    let name = |suffix: &str| format!("{prefix}_{suffix}");
    let ids = integers(node, &name("ids"))?;
    let listed = |suffix: &str| of_length(integers(node, &name(suffix))?, ids.len(), &name(suffix));
    let (node_ids, tree_ids) = (listed("nodeids")?, listed("treeids")?);
    let Numbers { values, are_doubles } = numbers(context, node, &name("weights"))?;
    of_length(&values, ids.len(), &name("weights"))?;
    let mut weights = vec![Vec::new(); places.len()];
    for (index, &id) in ids.iter().enumerate() {
        let (tree, node) = (tree_ids[index], node_ids[index]);
        let place = places.get(&(tree, node));
        let place = *place.with_context(|| format!("tree {tree} has no node {node}"))?;
        let output = u32::try_from(id).ok().filter(|&output| (output as usize) < outputs);
        let output = output.with_context(|| format!("output {id} of {outputs}"))?;
        weights[place as usize].push(Weight { output, value: values[index] });
    }
    Ok((weights, are_doubles))
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
