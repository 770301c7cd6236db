//! Whether a file may be handed to an engine at all. Engines trust much of what a file says:
//! one would read weights from the server's own folder, one follows a circle of nodes or counts
//! to the largest axis that an attribute can name without an end.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb;

use crate::LoadError;
use crate::messages::{bodies, graphs_in};
use crate::sizes::{self, Constants, constants};

/// The largest axis, from either end. NumPy has 64 of them.
const MAX_AXIS: i64 = 64;

/// Nodes of a graph: engines walk along a line of them by recursion.
pub(crate) const MAX_NODES: usize = 50_000;

/// Elements of a pooling or convolution window: 4096 × 4096.
const MAX_WINDOW: i64 = 1 << 24;

/// The largest stride, dilation or pad.
const MAX_STEP: u64 = 1 << 24;

/// Refuses a graph with a tensor in another file or of another length than it says, a value of
/// two nodes or of none, nodes in a circle, or a size or attribute out of all bounds.
///
/// # Errors
/// The text names what is wrong.
pub(crate) fn check(proto: &pb::ModelProto) -> Result<(), LoadError> {
    let Some(graph) = &proto.graph else { return Ok(()) };
    check_graph(graph, None)?;
    check_names(graph)
}

/// What a graph says of its values, and those around it.
struct Known<'a> {
    constants: Constants<'a>,
    /// Of more elements than a shape may have axes.
    long: HashSet<&'a str>,
    outer: Option<&'a Known<'a>>,
}

impl Known<'_> {
    fn constant(&self, name: &str) -> Option<&Vec<f64>> {
        let around = || self.outer.and_then(|outer| outer.constant(name));
        self.constants.get(name).or_else(around)
    }

    fn is_long(&self, name: &str) -> bool {
        self.long.contains(name) || self.outer.is_some_and(|outer| outer.is_long(name))
    }
}

fn check_graph(graph: &pb::GraphProto, outer: Option<&Known<'_>>) -> Result<(), LoadError> {
    let known = &Known { constants: constants(graph), long: long(graph), outer };
    if graph.node.len() > MAX_NODES {
        return Err(LoadError(format!("a graph of more than {MAX_NODES} nodes is not served")));
    }
    graph.input.iter().chain(&graph.output).try_for_each(check_value)?;
    graph.initializer.iter().try_for_each(check_tensor)?;
    graph.sparse_initializer.iter().try_for_each(check_sparse)?;
    graph.node.iter().try_for_each(|node| check_node(node, known))?;
    check_order(graph)
}

/// Names of a graph's inputs, weights and constants that are longer than a shape may be.
fn long(graph: &pb::GraphProto) -> HashSet<&str> {
    use pb::tensor_shape_proto::dimension::Value;
    use pb::type_proto::Value::TensorType;
    let length = |dim: &pb::tensor_shape_proto::Dimension| match dim.value {
        Some(Value::DimValue(length)) => length,
        _ => 0,
    };
    let given = graph.input.iter().filter_map(|input| {
        let TensorType(tensor) = input.r#type.as_ref()?.value.as_ref()?;
        Some((&input.name, length(tensor.shape.as_ref()?.dim.first()?)))
    });
    // What stands for large weights are strings, which no shape is made of.
    let is_text =
        |tensor: &pb::TensorProto| tensor.data_type == pb::tensor_proto::DataType::String as i32;
    let weights = graph.initializer.iter().filter_map(|tensor| match is_text(tensor) {
        true => Some((&tensor.name, i64::MAX)),
        false => Some((&tensor.name, *tensor.dims.first()?)),
    });
    let made = graph.node.iter().filter(|node| node.op_type == "Constant").filter_map(|node| {
        let length = node.attribute.iter().find_map(|it| match it.name.as_str() {
            "value" => it.t.as_ref()?.dims.first().copied(),
            "value_ints" => i64::try_from(it.ints.len()).ok(),
            _ => None,
        });
        Some((node.output.first()?, length?))
    });
    let is_long = |(_, length): &(&String, i64)| *length > MAX_AXIS;
    let all = given.chain(weights).chain(made);
    all.filter(is_long).map(|(name, _)| name.as_str()).collect()
}

/// Refuses a node that makes a shape of what is that long: each axis costs engines more than the last.
fn check_shape(node: &pb::NodeProto, known: &Known<'_>) -> Result<(), LoadError> {
    let shape = match node.op_type.as_str() {
        "ConstantOfShape" => node.input.first(),
        "Expand" | "Reshape" | "Tile" | "Unsqueeze" => node.input.get(1),
        _ => None,
    };
    match shape.filter(|name| known.is_long(name)) {
        Some(name) => Err(LoadError(format!("`{name}` asks for more than {MAX_AXIS} axes"))),
        None => Ok(()),
    }
}

fn check_node(node: &pb::NodeProto, known: &Known<'_>) -> Result<(), LoadError> {
    sizes::check_node(node, |name| known.constant(name)).map_err(LoadError)?;
    check_shape(node, known)?;
    graphs_in(node).try_for_each(|graph| check_graph(graph, Some(known)))?;
    node.attribute.iter().try_for_each(|attribute| {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(check_tensor)?;
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        sparse.into_iter().try_for_each(check_sparse)?;
        check_bounds(node, attribute)
    })
}

fn check_sparse(tensor: &pb::SparseTensorProto) -> Result<(), LoadError> {
    tensor.values.iter().chain(&tensor.indices).try_for_each(check_tensor)
}

fn check_tensor(tensor: &pb::TensorProto) -> Result<(), LoadError> {
    let elsewhere = tensor.data_location == Some(pb::tensor_proto::DataLocation::External as i32);
    if elsewhere || !tensor.external_data.is_empty() {
        return Err(LoadError(format!("the weights of `{}` are in another file", tensor.name)));
    }
    check_rank(&tensor.name, &tensor.dims)?;
    sizes::check_data(tensor).map_err(LoadError)
}

fn check_value(value: &pb::ValueInfoProto) -> Result<(), LoadError> {
    use pb::tensor_shape_proto::dimension::Value;
    let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let Some(pb::type_proto::Value::TensorType(tensor)) = kind else { return Ok(()) };
    let dims = tensor.shape.iter().flat_map(|shape| &shape.dim);
    let sizes: Vec<i64> = dims
        .map(|dim| match dim.value {
            Some(Value::DimValue(size)) => size,
            _ => -1,
        })
        .collect();
    check_rank(&value.name, &sizes)?;
    sizes::check_value(&value.name, &sizes).map_err(LoadError)
}

fn check_rank(name: &str, sizes: &[i64]) -> Result<(), LoadError> {
    match sizes.len() as i64 > MAX_AXIS {
        true => Err(LoadError(format!("`{name}` has more than {MAX_AXIS} axes"))),
        false => Ok(()),
    }
}

fn check_bounds(node: &pb::NodeProto, attribute: &pb::AttributeProto) -> Result<(), LoadError> {
    let is_sound = match attribute.name.as_str() {
        "axis" => (-MAX_AXIS..=MAX_AXIS).contains(&attribute.i),
        "axes" => {
            let is_axis = |axis: &i64| (-MAX_AXIS..=MAX_AXIS).contains(axis);
            attribute.ints.len() <= MAX_AXIS as usize && attribute.ints.iter().all(is_axis)
        }
        "perm" => {
            let axes: HashSet<i64> = attribute.ints.iter().copied().collect();
            let all = 0..attribute.ints.len().min(MAX_AXIS as usize) as i64;
            axes.len() == attribute.ints.len() && all.into_iter().all(|axis| axes.contains(&axis))
        }
        "kernel_shape" => {
            let size =
                attribute.ints.iter().try_fold(1i64, |size, &side| size.checked_mul(side.max(1)));
            size.is_some_and(|size| size <= MAX_WINDOW)
        }
        "pads" | "strides" | "dilations" | "output_padding" => {
            attribute.ints.iter().all(|step| step.unsigned_abs() <= MAX_STEP)
        }
        "num_scan_inputs" => graphs_in(node).all(|body| is_scan(node, body, attribute.i)),
        _ => true,
    };
    match is_sound {
        true => Ok(()),
        false => Err(LoadError(format!(
            "attribute `{}` of the {} node `{}` is out of bounds",
            attribute.name, node.op_type, node.name
        ))),
    }
}

/// Whether a node and its body have so many sequences, and the body gives back each state: tract takes
/// the one number off the other.
fn is_scan(node: &pb::NodeProto, body: &pb::GraphProto, sequences: i64) -> bool {
    let is_weight = |name: &str| body.initializer.iter().any(|tensor| tensor.name == name);
    let inputs = body.input.iter().filter(|input| !is_weight(&input.name)).count();
    let sequences = usize::try_from(sequences).unwrap_or_default();
    (1..=inputs.min(node.input.len())).contains(&sequences)
        && inputs - sequences <= body.output.len()
}

/// Each value is made once, and no node needs what is made from its own output. ONNX wants the
/// nodes sorted, too; some exporters do not.
fn check_order(graph: &pb::GraphProto) -> Result<(), LoadError> {
    let given = graph.input.iter().map(|input| &input.name);
    let given: HashSet<&String> =
        given.chain(graph.initializer.iter().map(|tensor| &tensor.name)).collect();
    let mut makers: HashMap<&String, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if given.contains(name) || makers.insert(name, index).is_some() {
                return Err(LoadError(format!("the value `{name}` is made twice")));
            }
        }
    }
    let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    let mut missing: Vec<usize> = vec![0; graph.node.len()];
    for (index, node) in graph.node.iter().enumerate() {
        for maker in needs(node).filter_map(|name| makers.get(name)) {
            needed_by[*maker].push(index);
            missing[index] += 1;
        }
    }
    let mut ready: Vec<usize> = (0..missing.len()).filter(|&index| missing[index] == 0).collect();
    while let Some(index) = ready.pop() {
        for &next in &needed_by[index] {
            missing[next] -= 1;
            if missing[next] == 0 {
                ready.push(next);
            }
        }
    }
    match missing.iter().position(|&missing| missing > 0) {
        Some(index) => Err(LoadError(format!(
            "the {} node `{}` needs what is made from its own output",
            graph.node[index].op_type, graph.node[index].name
        ))),
        None => Ok(()),
    }
}

/// Whatever is taken in a graph, by its inner graphs too, is made in it.
fn check_names(graph: &pb::GraphProto) -> Result<(), LoadError> {
    let inputs = graph.input.iter().map(|input| &input.name);
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    let weights = graph.initializer.iter().chain(sparse).map(|tensor| &tensor.name);
    let made = graph.node.iter().flat_map(|node| &node.output);
    let made: HashSet<&String> = inputs.chain(weights).chain(made).collect();
    let is_missing = |name: &&String| !name.is_empty() && !made.contains(name);
    for node in &graph.node {
        if let Some(name) = needs(node).find(is_missing) {
            let (operator, node) = (&node.op_type, &node.name);
            return Err(LoadError(format!(
                "the {operator} node `{node}` takes `{name}`, which nothing makes"
            )));
        }
    }
    let mut outputs = graph.output.iter().map(|output| &output.name);
    match outputs.find(is_missing) {
        Some(name) => Err(LoadError(format!("nothing makes the output `{name}`"))),
        None => Ok(()),
    }
}

/// The most nodes in a line, each needing what the one before gives, in the inner graphs of its
/// nodes; `None` where there are none. Of a graph that [`check`] has passed.
pub(crate) fn deepest_body(proto: &pb::ModelProto) -> Option<usize> {
    bodies(proto.graph.as_ref()?).map(|body| depth(body).max(deepest_within(body))).max()
}

fn deepest_within(graph: &pb::GraphProto) -> usize {
    bodies(graph).map(|body| depth(body).max(deepest_within(body))).max().unwrap_or(0)
}

fn depth(graph: &pb::GraphProto) -> usize {
    let made: HashSet<&String> = graph.node.iter().flat_map(|node| &node.output).collect();
    let mut depths: HashMap<&String, usize> = HashMap::new();
    for node in &graph.node {
        let mut depth = 0;
        for name in needs(node).filter(|name| made.contains(name)) {
            match depths.get(name) {
                Some(&before) => depth = depth.max(before),
                // Not sorted: no line is longer than this.
                None => return graph.node.len(),
            }
        }
        depths.extend(node.output.iter().map(|name| (name, depth + 1)));
    }
    depths.into_values().max().unwrap_or(0)
}

/// The values that a node takes: its inputs, and what its inner graphs take from around them.
pub(crate) fn needs(node: &pb::NodeProto) -> impl Iterator<Item = &String> {
    node.input.iter().chain(graphs_in(node).flat_map(captured))
}

fn captured(graph: &pb::GraphProto) -> Vec<&String> {
    let own = graph.input.iter().map(|input| &input.name);
    let own = own.chain(graph.initializer.iter().map(|tensor| &tensor.name));
    let own: HashSet<&String> =
        own.chain(graph.node.iter().flat_map(|node| &node.output)).collect();
    let outputs = graph.output.iter().map(|output| &output.name);
    let taken = graph.node.iter().flat_map(|node| needs(node).collect::<Vec<_>>()).chain(outputs);
    taken.filter(|name| !own.contains(name)).collect()
}
