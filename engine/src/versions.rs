//! What ONNX's operators are in one version of its operator set and another in the next. No operator is
//! known here by how it is computed.

use std::ops::RangeInclusive;

use tract_onnx::pb::NodeProto;

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

/// An operator among these nodes, or in their graphs, that is another in one version of ONNX's operator
/// set than in the other, or where that is not known.
pub(crate) fn changed(nodes: &[NodeProto], one: i64, other: i64) -> Option<&str> {
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
