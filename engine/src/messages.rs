//! What is asked of a file's messages by all who rewrite them: the graphs inside others, ONNX's own
//! domain, names that are free. No operator is known here by what it computes.

use std::borrow::Cow;
use std::collections::HashSet;
use std::mem;

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

/// The graphs inside a node.
pub(crate) fn graphs_in(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|it| it.g.iter().chain(&it.graphs))
}

/// As [`graphs_in`], to be changed.
pub(crate) fn graphs_of(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|it| it.g.iter_mut().chain(&mut it.graphs))
}

/// The graphs inside a graph's nodes.
pub(crate) fn bodies(graph: &GraphProto) -> impl Iterator<Item = &GraphProto> {
    graph.node.iter().flat_map(graphs_in)
}

/// Whether a domain is ONNX's own, which has two names.
pub(crate) fn is_onnx(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// Takes away the inputs that are left out at the end: tract counts them, and ONNX Runtime looks for
/// some of them where there are none. Returns whether there were any.
pub(crate) fn trim(nodes: &mut [NodeProto]) -> bool {
    let mut has_trimmed = false;
    for node in nodes {
        // A loop must have two, and both may be left out.
        let least = if node.op_type == "Loop" { 2 } else { 0 };
        while node.input.len() > least && node.input.last().is_some_and(String::is_empty) {
            node.input.pop();
            has_trimmed = true;
        }
        for graph in graphs_of(node) {
            has_trimmed |= trim(&mut graph.node);
        }
    }
    has_trimmed
}

/// The messages with an operator between each input and an output of its name: tract would forget what
/// the input is.
pub(crate) fn parted(mut proto: Cow<'_, ModelProto>) -> Cow<'_, ModelProto> {
    let passed = |graph: &GraphProto| -> Vec<usize> {
        let held: HashSet<&str> = graph.initializer.iter().map(|it| &*it.name).collect();
        let taken: HashSet<&str> = graph.input.iter().map(|it| &*it.name).collect();
        let is_passed = |name: &str| taken.contains(name) && !held.contains(name);
        (0..graph.output.len()).filter(|&at| is_passed(&graph.output[at].name)).collect()
    };
    let passed = proto.graph.as_ref().map(passed).unwrap_or_default();
    if passed.is_empty() {
        return proto;
    }
    let prefix = free_prefix(&proto, "passed");
    if let Some(graph) = &mut proto.to_mut().graph {
        for at in passed {
            let name = mem::replace(&mut graph.output[at].name, format!("{prefix}.{at}"));
            graph.node.push(NodeProto {
                name: format!("{prefix} node {at}"),
                input: vec![name],
                output: vec![graph.output[at].name.clone()],
                op_type: "Identity".to_owned(),
                ..NodeProto::default()
            });
        }
    }
    proto
}

/// `wanted` and a number, with which no name of a value or a node starts anywhere in a file.
pub(crate) fn free_prefix(proto: &ModelProto, wanted: &str) -> String {
    let mut taken = HashSet::new();
    let mut see = |name: &str| {
        let Some(rest) = name.strip_prefix(wanted) else { return };
        let mut number = 0u32;
        // With more digits there are more numbers than names.
        for digit in rest.bytes().take_while(u8::is_ascii_digit).take(9) {
            number = 10 * number + u32::from(digit - b'0');
            taken.insert(number);
        }
    };
    if let Some(graph) = &proto.graph {
        see_graph(graph, &mut see);
    }
    for function in &proto.functions {
        for name in function.input.iter().chain(&function.output) {
            see(name);
        }
        see_nodes(&function.node, &mut see);
    }
    let number = (0..).find(|number| !taken.contains(number));
    format!("{wanted}{}", number.expect("more numbers than names"))
}

fn see_graph(graph: &GraphProto, see: &mut dyn FnMut(&str)) {
    for value in graph.input.iter().chain(&graph.output).chain(&graph.value_info) {
        see(&value.name);
    }
    let sparse = graph.sparse_initializer.iter().filter_map(|it| it.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        see(&tensor.name);
    }
    see_nodes(&graph.node, see);
}

fn see_nodes(nodes: &[NodeProto], see: &mut dyn FnMut(&str)) {
    for node in nodes {
        see(&node.name);
        for name in node.input.iter().chain(&node.output) {
            see(name);
        }
        for graph in graphs_in(node) {
            see_graph(graph, see);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix_beside(names: &[&str]) -> String {
        let node = |name: &&str| NodeProto { name: (*name).to_owned(), ..NodeProto::default() };
        let node = names.iter().map(node).collect();
        let graph = Some(GraphProto { node, ..GraphProto::default() });
        free_prefix(&ModelProto { graph, ..ModelProto::default() }, "call")
    }

    #[test]
    fn prefixes_are_those_that_no_name_starts_with() {
        assert_eq!(prefix_beside(&[]), "call0");
        assert_eq!(prefix_beside(&["call", "called", "a call0"]), "call0");
        assert_eq!(prefix_beside(&["call0", "call2"]), "call1");
        assert_eq!(prefix_beside(&["call0/x", "call12 y"]), "call2");
        let long = format!("call{}", "1".repeat(1000));
        assert_eq!(prefix_beside(&["call0", long.as_str()]), "call2");
    }
}
