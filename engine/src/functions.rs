//! A file's own functions: each node that calls one becomes the nodes of its body, as no engine here
//! has functions.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::{iter, mem};

use prost::Message;
use tract_onnx::pb::{self, AttributeProto, FunctionProto, GraphProto, NodeProto};

use crate::graph::LoadError;
use crate::messages::{free_prefix, graphs_in, graphs_of, is_onnx};
use crate::sound::MAX_NODES;
use crate::tract::contrib;
use crate::versions::Imports;

/// Functions and bodies of branches and loops that lie in each other, as engines follow them by
/// recursion. A file's own graphs lie no deeper: its reader takes 100 messages in each other.
const DEEPEST: usize = 32;

/// Bytes that calls may put into a graph: of functions' bodies, and of the names and attributes that
/// they are given there.
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
    body: FunctionProto,
    defaults: Vec<AttributeProto>,
    bytes: usize,
    is_overloaded: bool,
}

/// By domain and name.
type Functions = HashMap<(String, String), Function>;

/// Puts the bodies of a file's functions where they are called; `onnx` are the file's bytes. Returns
/// whether any is.
///
/// # Errors
/// Functions are called that call themselves, are overloaded, have operators that are others in the
/// graph's operator set, or that make too much of it.
pub(crate) fn inline(proto: &mut pb::ModelProto, onnx: &[u8]) -> Result<bool, LoadError> {
    if proto.functions.is_empty() {
        return Ok(false);
    }
    let rest = Rest::decode(onnx);
    let rest = rest.map_err(|error| LoadError(format!("not an ONNX file: {error}")))?;
    let prefix = free_prefix(proto, "call");
    let functions = by_key(mem::take(&mut proto.functions), rest.functions);
    let Some(graph) = &mut proto.graph else { return Ok(false) };
    let mut inliner = Inliner {
        functions: &functions,
        imports: Imports::of(&mut proto.opset_import),
        imported: HashSet::new(),
        prefix,
        calls: 0,
        nodes: 0,
        bytes: 0,
    };
    inliner.inline(&mut graph.node, 0)?;
    Ok(inliner.calls > 0)
}

/// Those that a node may call.
fn by_key(bodies: Vec<FunctionProto>, rest: Vec<RestOfFunction>) -> Functions {
    let mut functions = Functions::new();
    for (body, RestOfFunction { defaults, overload }) in bodies.into_iter().zip(rest) {
        let key = (body.domain.clone().unwrap_or_default(), body.name.clone().unwrap_or_default());
        if is_operator(&key.0, &key.1) {
            continue;
        }
        match functions.entry(key) {
            Entry::Occupied(mut other) => other.get_mut().is_overloaded = true,
            Entry::Vacant(place) => {
                let lengths = defaults.iter().map(Message::encoded_len);
                let bytes = body.encoded_len() + lengths.sum::<usize>();
                let is_overloaded = !overload.is_empty();
                place.insert(Function { body, defaults, bytes, is_overloaded });
            }
        }
    }
    functions
}

/// Whether a name is an operator's, which ONNX Runtime takes though a file has such a function. In
/// ONNX's domains it looks for no functions at all.
fn is_operator(domain: &str, name: &str) -> bool {
    is_onnx(domain)
        || matches!(domain, "ai.onnx.ml" | "ai.onnx.training")
        || contrib::is_known(domain, name)
}

struct Inliner<'a> {
    functions: &'a Functions,
    imports: Imports<'a>,
    /// Functions whose operator sets are among them.
    imported: HashSet<(String, String)>,
    /// What no name starts with.
    prefix: String,
    calls: usize,
    /// Nodes and bytes that calls have made.
    nodes: usize,
    bytes: usize,
}

impl Inliner<'_> {
    fn inline(&mut self, nodes: &mut Vec<NodeProto>, depth: usize) -> Result<(), LoadError> {
        for mut node in mem::take(nodes) {
            let key = (node.domain.clone(), node.op_type.clone());
            for graph in graphs_of(&mut node) {
                let depth = deeper(depth, || format!("a graph of the operator `{}` lies", key.1))?;
                self.inline(&mut graph.node, depth)?;
            }
            let Some(function) = self.functions.get(&key) else {
                nodes.push(node);
                continue;
            };
            let depth = deeper(depth, || format!("its function `{}` is called", key.1))?;
            check_call(function, &node)?;
            if self.imported.insert(key) {
                self.imports.add(&function.body)?;
            }
            let mut body = self.called(function, &node)?;
            self.inline(&mut body, depth)?;
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
        take(&mut self.bytes, function.bytes)?;
        let prefix = format!("{}{}", self.prefix, self.calls);
        self.calls += 1;
        let (values, passed) = bound(&function.body, node);
        take(&mut self.bytes, passed.iter().map(|(from, to)| from.len() + to.len()).sum())?;
        let (given, defaults) = (by_name(&node.attribute), by_name(&function.defaults));
        let (scope, bytes) = (format!("{prefix}/"), &mut self.bytes);
        let mut call = Call { values, scope, given, defaults, bytes };
        let mut nodes = function.body.node.clone();
        nodes.iter_mut().try_for_each(|node| call.node(node))?;
        nodes.extend(passed.into_iter().map(|(from, to)| identity(from, to)));
        // Else tract names them by outputs, and another node may have the name of the caller's.
        let unnamed = nodes.iter_mut().enumerate().filter(|(_, node)| node.name.is_empty());
        unnamed.for_each(|(index, node)| node.name = format!("{prefix}.{index}"));
        self.nodes += 1 + count(&nodes);
        match self.nodes > MAX_NODES {
            true => Err(LoadError(format!("its functions make more than {MAX_NODES} nodes"))),
            false => Ok(nodes),
        }
    }
}

/// The depth of what lies one deeper.
fn deeper(depth: usize, what: impl FnOnce() -> String) -> Result<usize, LoadError> {
    match depth < DEEPEST {
        true => Ok(depth + 1),
        false => Err(LoadError(format!(
            "{} within more than {DEEPEST} functions and bodies of branches and loops",
            what()
        ))),
    }
}

fn take(bytes: &mut usize, more: usize) -> Result<(), LoadError> {
    *bytes = bytes.saturating_add(more);
    match *bytes > MAX_BYTES {
        true => Err(LoadError(format!("its functions make more than {MAX_BYTES} bytes"))),
        false => Ok(()),
    }
}

/// Of nodes and those in their graphs.
fn count(nodes: &[NodeProto]) -> usize {
    let inner = nodes.iter().flat_map(graphs_in).map(|graph| count(&graph.node));
    nodes.len() + inner.sum::<usize>()
}

fn check_call(function: &Function, node: &NodeProto) -> Result<(), LoadError> {
    let (body, name) = (&function.body, &node.op_type);
    if function.is_overloaded {
        return Err(LoadError(format!("overloads of its function `{name}` are not served")));
    }
    if node.input.len() > body.input.len() || node.output.len() > body.output.len() {
        return Err(LoadError(format!(
            "a node of its function `{name}` has {} inputs and {} outputs, expected {} and {}",
            node.input.len(),
            node.output.len(),
            body.input.len(),
            body.output.len()
        )));
    }
    Ok(())
}

/// The caller's values by a function's names for them, and which others are to be outputs, too.
fn bound<'a>(
    body: &'a FunctionProto,
    node: &'a NodeProto,
) -> (HashMap<&'a str, &'a str>, Vec<(&'a str, &'a str)>) {
    let inputs = node.input.iter().map(String::as_str).chain(iter::repeat(""));
    let mut values: HashMap<&str, &str> =
        body.input.iter().map(String::as_str).zip(inputs).collect();
    let mut passed = Vec::new();
    let outputs = body.output.iter().zip(&node.output).filter(|(_, given)| !given.is_empty());
    for (made, given) in outputs {
        match values.get(made.as_str()) {
            // What is an input, too, or an output twice, is no node's to rename.
            Some(&value) => passed.push((value, given.as_str())),
            None => {
                values.insert(made, given);
            }
        }
    }
    (values, passed)
}

fn identity(from: &str, to: &str) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        op_type: "Identity".to_owned(),
        ..NodeProto::default()
    }
}

fn by_name(attributes: &[AttributeProto]) -> HashMap<&str, &AttributeProto> {
    attributes.iter().map(|attribute| (attribute.name.as_str(), attribute)).collect()
}

/// What a function's body is within.
struct Call<'a> {
    /// The caller's values by the function's names for them.
    values: HashMap<&'a str, &'a str>,
    /// What its other names start with from now on.
    scope: String,
    given: HashMap<&'a str, &'a AttributeProto>,
    defaults: HashMap<&'a str, &'a AttributeProto>,
    /// That all calls have made.
    bytes: &'a mut usize,
}

impl Call<'_> {
    fn node(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        if !node.name.is_empty() {
            take(self.bytes, self.scope.len())?;
            node.name.insert_str(0, &self.scope);
        }
        for name in node.input.iter_mut().chain(&mut node.output) {
            self.rename(name)?;
        }
        // An empty one is two bytes in a file.
        take(self.bytes, size_of_val(node.attribute.as_slice()))?;
        let mut attributes = Vec::with_capacity(node.attribute.len());
        for attribute in mem::take(&mut node.attribute) {
            attributes.extend(self.attribute(attribute)?);
        }
        node.attribute = attributes;
        Ok(())
    }

    fn rename(&mut self, name: &mut String) -> Result<(), LoadError> {
        if name.is_empty() {
            return Ok(());
        }
        match self.values.get(name.as_str()) {
            Some(value) => {
                take(self.bytes, value.len())?;
                *name = (*value).to_owned();
            }
            None => {
                take(self.bytes, self.scope.len())?;
                name.insert_str(0, &self.scope);
            }
        }
        Ok(())
    }

    /// `None` where neither the caller nor the function gives it a value.
    fn attribute(
        &mut self,
        mut attribute: AttributeProto,
    ) -> Result<Option<AttributeProto>, LoadError> {
        if !attribute.ref_attr_name.is_empty() {
            let reference = attribute.ref_attr_name.as_str();
            let given = self.given.get(reference);
            let Some(found) = given.or_else(|| self.defaults.get(reference)) else {
                return Ok(None);
            };
            take(self.bytes, found.encoded_len())?;
            let is_callers = given.is_some();
            attribute = AttributeProto { name: attribute.name, ..(*found).clone() };
            if is_callers {
                return Ok(Some(attribute));
            }
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            self.graph(graph)?;
        }
        Ok(Some(attribute))
    }

    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), LoadError> {
        for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
            self.rename(&mut value.name)?;
        }
        let sparse = graph.sparse_initializer.iter_mut().filter_map(|it| it.values.as_mut());
        for tensor in graph.initializer.iter_mut().chain(sparse) {
            self.rename(&mut tensor.name)?;
        }
        graph.node.iter_mut().try_for_each(|node| self.node(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 8 << 20;
    const TIMES: usize = 40;

    /// Why a call is not put into a graph.
    fn refusal(call: NodeProto, body: Vec<NodeProto>) -> String {
        let function = FunctionProto {
            name: Some("F".to_owned()),
            domain: Some("own".to_owned()),
            input: vec!["a".to_owned()],
            output: vec!["b".to_owned()],
            node: body,
            ..FunctionProto::default()
        };
        let mut proto = pb::ModelProto { functions: vec![function], ..pb::ModelProto::default() };
        let onnx = proto.encode_to_vec();
        proto.graph = Some(GraphProto { node: vec![call], ..GraphProto::default() });
        inline(&mut proto, &onnx).expect_err("it makes too much").to_string()
    }

    fn call(value: String, attribute: AttributeProto) -> NodeProto {
        NodeProto {
            op_type: "F".to_owned(),
            domain: "own".to_owned(),
            input: vec![value],
            attribute: vec![attribute],
            ..NodeProto::default()
        }
    }

    #[test]
    fn names_are_counted_where_they_are_mentioned() {
        let node = NodeProto { input: vec!["a".to_owned(); TIMES], ..NodeProto::default() };
        let call = call("x".repeat(LARGE), AttributeProto::default());
        assert!(refusal(call, vec![node]).contains("bytes"));
    }

    #[test]
    fn attributes_are_counted_where_they_are_referred_to() {
        let name = || "text".to_owned();
        let given = AttributeProto { name: name(), s: vec![0; LARGE], ..AttributeProto::default() };
        let reference =
            AttributeProto { name: name(), ref_attr_name: name(), ..AttributeProto::default() };
        let node = NodeProto { attribute: vec![reference], ..NodeProto::default() };
        assert!(refusal(call("x".to_owned(), given), vec![node; TIMES]).contains("bytes"));
    }
}
