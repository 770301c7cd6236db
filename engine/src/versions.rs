//! The operator sets of a model and its functions, and what ONNX's operators are in one version of its
//! set and another in the next. No operator is known here by how it is computed.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use tract_onnx::pb::{FunctionProto, NodeProto, OperatorSetIdProto};

use crate::graph::LoadError;
use crate::messages::{graphs_in, is_onnx};

/// Versions between which [`CHANGES`] are known: files have functions of their own since the first, and
/// the last is ONNX 1.23's.
const KNOWN: RangeInclusive<i64> = 15..=28;

/// Operators whose nodes mean something else, or are written otherwise, since a version. Those that took
/// more types, inputs or attributes are what they were to nodes without; they stand here only where an
/// engine does not look for the new ones in a graph of the version before.
const CHANGES: [(&str, i64); 15] = [
    // Its axis became an input, with another default.
    ("DFT", 20),
    // Its modes have other names.
    ("GridSample", 20),
    // One scale and bias a channel, not a group.
    ("GroupNormalization", 21),
    // Their axes became an input; ReduceSum's had before.
    ("ReduceL1", 18),
    ("ReduceL2", 18),
    ("ReduceLogSum", 18),
    ("ReduceLogSumExp", 18),
    ("ReduceMax", 18),
    ("ReduceMean", 18),
    ("ReduceMin", 18),
    ("ReduceProd", 18),
    ("ReduceSumSquare", 18),
    // It has axes.
    ("Resize", 18),
    // Pixels are half a step further by default.
    ("RoiAlign", 16),
    // Without sizes it has a count.
    ("Split", 18),
];

/// A model's operator sets.
pub(crate) struct Imports<'a> {
    sets: &'a mut Vec<OperatorSetIdProto>,
    versions: HashMap<String, i64>,
}

impl<'a> Imports<'a> {
    pub(crate) fn of(sets: &'a mut Vec<OperatorSetIdProto>) -> Self {
        let mut versions = HashMap::new();
        for set in sets.iter() {
            versions.entry(name_of(&set.domain).to_owned()).or_insert(set.version);
        }
        Self { sets, versions }
    }

    /// Makes the operator sets of a function the model's, too. ONNX Runtime takes its nodes for those of
    /// the graph's version: only where they are the same is that right.
    pub(crate) fn add(&mut self, function: &FunctionProto) -> Result<(), LoadError> {
        let mut known = HashSet::new();
        for wanted in &function.opset_import {
            let domain = name_of(&wanted.domain);
            if !known.insert(domain) {
                let name = function.name.as_deref().unwrap_or_default();
                return Err(LoadError(format!(
                    "its function `{name}` names the operator set `{domain}` twice"
                )));
            }
            let Some(&version) = self.versions.get(domain) else {
                self.versions.insert(domain.to_owned(), wanted.version);
                self.sets.push(wanted.clone());
                continue;
            };
            if version == wanted.version {
                continue;
            }
            let changed = match is_onnx(domain) {
                true => match changed(&function.node, version, wanted.version) {
                    Some(op_type) => format!(", where `{op_type}` may be another"),
                    None => continue,
                },
                false => String::new(),
            };
            return Err(LoadError(format!(
                "its function `{}` is of version {} of the operator set `{domain}`, expected \
                 version {version} as the graph{changed}",
                function.name.as_deref().unwrap_or_default(),
                wanted.version
            )));
        }
        Ok(())
    }
}

/// The one name of an operator set.
fn name_of(domain: &str) -> &str {
    if is_onnx(domain) { "" } else { domain }
}

/// An operator among these nodes, or in their graphs, that is another in one version of ONNX's operator
/// set than in the other, or where that is not known.
fn changed(nodes: &[NodeProto], one: i64, other: i64) -> Option<&str> {
    if one == other {
        return None;
    }
    let since = |since: i64| one.min(other) < since && since <= one.max(other);
    let is_known = KNOWN.contains(&one) && KNOWN.contains(&other);
    let is_changed = |node: &NodeProto| {
        let change = CHANGES.iter().find(|(name, _)| *name == node.op_type);
        is_onnx(&node.domain) && (!is_known || change.is_some_and(|&(_, version)| since(version)))
    };
    nodes.iter().find_map(|node| {
        let inner = || graphs_in(node).find_map(|graph| changed(&graph.node, one, other));
        if is_changed(node) { Some(&*node.op_type) } else { inner() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_changed(op_type: &str, one: i64, other: i64) -> bool {
        let node = NodeProto { op_type: op_type.to_owned(), ..NodeProto::default() };
        changed(&[node], one, other).is_some()
    }

    #[test]
    fn operators_change_at_their_version() {
        assert!(is_changed("ReduceMax", 17, 18) && is_changed("ReduceMax", 18, 17));
        assert!(!is_changed("ReduceMax", 18, 22) && !is_changed("ReduceMax", 15, 17));
        assert!(!is_changed("Relu", 15, 28));
        assert!(!is_changed("ReduceMax", 11, 11));
    }

    #[test]
    fn versions_that_are_not_known_are_others() {
        assert!(is_changed("Relu", 14, 15) && is_changed("Relu", 28, 29));
    }
}
