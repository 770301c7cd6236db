//! A file's own functions: each node that calls one becomes the nodes of its body, as no engine here
//! has functions.

use std::collections::HashMap;
use std::iter;
use std::mem;

use prost::Message;
use tract_onnx::pb::{self, AttributeProto, GraphProto, NodeProto};

use crate::graph::LoadError;
use crate::sound::MAX_NODES;

/// Functions that call each other, one within the other.
const DEEPEST_CALL: usize = 32;

/// Bytes of all bodies, for each that is called.
const MAX_BYTES: usize = 1 << 28;

/// What tract's messages lack: a function's defaults and overload.
#[derive(Clone, PartialEq, Message)]
struct Rest {
    #[prost(message, repeated, tag = "25")]
    functions: Vec<RestOfFunction>,
}

#[derive(Clone, PartialEq, Message)]
struct RestOfFunction {
    #[prost(message, repeated, tag = "11")]
    defaults: Vec<AttributeProto>,
    #[prost(string, tag = "13")]
    overload: String,
}

struct Function {
    body: pb::FunctionProto,
    defaults: Vec<AttributeProto>,
}

/// Puts the bodies of a file's functions where they are called; `onnx` are the file's bytes. Returns
/// whether there were any.
///
/// # Errors
/// Functions that call themselves, are overloaded or of another operator set than the graph, or that
/// make too much of it.
pub(crate) fn inline(proto: &mut pb::ModelProto, onnx: &[u8]) -> Result<bool, LoadError> {
    if proto.functions.is_empty() {
        return Ok(false);
    }
    let rest = Rest::decode(onnx);
    let rest = rest.map_err(|error| LoadError(format!("not an ONNX file: {error}")))?;
    let mut functions = HashMap::new();
    for (body, rest) in mem::take(&mut proto.functions).into_iter().zip(rest.functions) {
        let name = body.name.clone().unwrap_or_default();
        import(&mut proto.opset_import, &body, &name)?;
        let key = (body.domain.clone().unwrap_or_default(), name.clone());
        let function = Function { body, defaults: rest.defaults };
        if !rest.overload.is_empty() || functions.insert(key, function).is_some() {
            return Err(LoadError(format!("overloads of its function `{name}` are not served")));
        }
    }
    let Some(graph) = &mut proto.graph else { return Ok(true) };
    let prefix = free_prefix(graph, "call");
    let mut inliner = Inliner { functions: &functions, prefix, calls: 0, nodes: 0, bytes: 0 };
    inliner.inline(&mut graph.node, 0)?;
    Ok(true)
}

/// Makes the operator sets of a function the model's, too.
fn import(
    imports: &mut Vec<pb::OperatorSetIdProto>,
    function: &pb::FunctionProto,
    name: &str,
) -> Result<(), LoadError> {
    let main = |domain: &str| if domain == "ai.onnx" { String::new() } else { domain.to_owned() };
    for wanted in &function.opset_import {
        match imports.iter().find(|it| main(&it.domain) == main(&wanted.domain)) {
            None => imports.push(wanted.clone()),
            Some(it) if it.version == wanted.version => {}
            Some(it) => {
                return Err(LoadError(format!(
                    "its function `{name}` is of version {} of the operator set `{}`, expected \
                     version {} as the graph",
                    wanted.version, it.domain, it.version
                )));
            }
        }
    }
    Ok(())
}

struct Inliner<'a> {
    functions: &'a HashMap<(String, String), Function>,
    /// What no value's name starts with.
    prefix: String,
    calls: usize,
    nodes: usize,
    bytes: usize,
}

impl Inliner<'_> {
    fn inline(&mut self, nodes: &mut Vec<NodeProto>, depth: usize) -> Result<(), LoadError> {
        for mut node in mem::take(nodes) {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                return Err(LoadError(format!("its functions make more than {MAX_NODES} nodes")));
            }
            for graph in graphs_of(&mut node) {
                self.inline(&mut graph.node, depth)?;
            }
            let key = (node.domain.clone(), node.op_type.clone());
            let Some(function) = self.functions.get(&key) else {
                nodes.push(node);
                continue;
            };
            if depth == DEEPEST_CALL {
                return Err(LoadError(format!(
                    "its function `{}` is called within more than {DEEPEST_CALL} others",
                    node.op_type
                )));
            }
            let mut body = self.called(function, &node)?;
            self.inline(&mut body, depth + 1)?;
            nodes.append(&mut body);
        }
        Ok(())
    }

    /// The body of a function, with the values and attributes of a node that calls it.
    fn called(
        &mut self,
        function: &Function,
        node: &NodeProto,
    ) -> Result<Vec<NodeProto>, LoadError> {
        let Function { body, defaults } = function;
        self.bytes = self.bytes.saturating_add(body.encoded_len());
        if self.bytes > MAX_BYTES {
            return Err(LoadError(format!("its functions make more than {MAX_BYTES} bytes")));
        }
        if node.input.len() > body.input.len() || node.output.len() > body.output.len() {
            return Err(LoadError(format!(
                "a node of its function `{}` has {} inputs and {} outputs, expected {} and {}",
                node.op_type,
                node.input.len(),
                node.output.len(),
                body.input.len(),
                body.output.len()
            )));
        }
        let scope = format!("{}{}/", self.prefix, self.calls);
        self.calls += 1;
        let inputs = node.input.iter().map(String::as_str).chain(iter::repeat(""));
        let mut values: HashMap<&str, &str> =
            body.input.iter().map(String::as_str).zip(inputs).collect();
        let mut nodes = Vec::with_capacity(body.node.len());
        let outputs = body.output.iter().zip(&node.output).filter(|(_, given)| !given.is_empty());
        for (made, given) in outputs {
            // What is an input, too, or an output twice, is no node's to rename.
            if let Some(passed) = values.get(made.as_str()) {
                let (input, output) = (vec![(*passed).to_owned()], vec![given.clone()]);
                let op_type = "Identity".to_owned();
                nodes.push(NodeProto { input, output, op_type, ..NodeProto::default() });
                continue;
            }
            values.insert(made, given);
        }
        let call = Call { values, scope, given: &node.attribute, defaults };
        nodes.extend(body.node.iter().map(|node| call.node(node)));
        Ok(nodes)
    }
}

/// What a function's body is within: the caller's values by the function's names for them.
struct Call<'a> {
    values: HashMap<&'a str, &'a str>,
    scope: String,
    given: &'a [AttributeProto],
    defaults: &'a [AttributeProto],
}

impl Call<'_> {
    fn node(&self, node: &NodeProto) -> NodeProto {
        let mut node = node.clone();
        if !node.name.is_empty() {
            node.name = format!("{}{}", self.scope, node.name);
        }
        node.input.iter_mut().chain(&mut node.output).for_each(|name| self.rename(name));
        node.attribute = node.attribute.into_iter().filter_map(|it| self.attribute(it)).collect();
        node
    }

    fn rename(&self, name: &mut String) {
        match self.values.get(name.as_str()) {
            Some(value) => *name = (*value).to_owned(),
            None if name.is_empty() => {}
            None => *name = format!("{}{name}", self.scope),
        }
    }

    /// `None` where neither the caller nor the function gives it a value.
    fn attribute(&self, mut attribute: AttributeProto) -> Option<AttributeProto> {
        if attribute.ref_attr_name.is_empty() {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|it| self.graph(it));
            return Some(attribute);
        }
        let mut all = self.given.iter().chain(self.defaults);
        let found = all.find(|given| given.name == attribute.ref_attr_name)?;
        Some(AttributeProto { name: attribute.name, ..found.clone() })
    }

    fn graph(&self, graph: &mut GraphProto) {
        let values = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
        values.for_each(|value| self.rename(&mut value.name));
        let sparse = graph.sparse_initializer.iter_mut().filter_map(|it| it.values.as_mut());
        graph.initializer.iter_mut().chain(sparse).for_each(|it| self.rename(&mut it.name));
        for node in &mut graph.node {
            *node = self.node(node);
        }
    }
}

/// The graphs inside a node.
pub(crate) fn graphs_of(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|it| it.g.iter_mut().chain(&mut it.graphs))
}

/// `wanted`, or a longer name, that none of a graph's values starts with.
pub(crate) fn free_prefix(graph: &GraphProto, wanted: &str) -> String {
    let mut prefix = wanted.to_owned();
    while any_name(graph, &|name| name.starts_with(&prefix)) {
        prefix.push('_');
    }
    prefix
}

fn any_name(graph: &GraphProto, holds: &dyn Fn(&str) -> bool) -> bool {
    let values = graph.input.iter().map(|value| &value.name);
    let values = values.chain(graph.initializer.iter().map(|tensor| &tensor.name));
    let made = graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output));
    let inner = graph.node.iter().flat_map(|node| &node.attribute);
    let mut inner = inner.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
    values.chain(made).any(|name| holds(name)) || inner.any(|graph| any_name(graph, holds))
}
