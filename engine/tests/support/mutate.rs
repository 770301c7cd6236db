//! Graphs broken at random, the same for the same seed: in their bytes, and in what their
//! messages say.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    tensor_shape_proto::dimension, type_proto,
};

/// Numbers at which code goes wrong.
const NUMBERS: [i64; 20] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    -7,
    16,
    255,
    1000,
    1 << 16,
    1 << 20,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX,
    i64::MIN,
];

const FLOATS: [f32; 8] = [0.0, -0.0, -1.0, 1e30, -1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % bound.max(1) as u64) as usize
    }

    pub fn of<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    fn index<T>(&mut self, items: &[T]) -> Option<usize> {
        (!items.is_empty()).then(|| self.below(items.len()))
    }

    fn number(&mut self) -> i64 {
        NUMBERS[self.below(NUMBERS.len())]
    }
}

/// The small graphs of the tests, by name: each operator of ours, and one or more a kind.
pub fn corpus() -> Vec<(String, Vec<u8>)> {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders =
        [engine.join("tests/fixtures/operators"), engine.join("../tests/fixtures/models")];
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(folder).expect("a folder of fixtures");
        files.extend(entries.map(|entry| entry.expect("an entry").path()));
    }
    // One of the models is there to eat memory, which an examination is for.
    files.retain(|file| file.extension().is_some() && !file.ends_with("huge.onnx"));
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> (String, Vec<u8>) {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = fs::read(file).expect("a fixture");
    if file.extension().is_some_and(|extension| extension == "onnx") {
        return (name, bytes);
    }
    // A case holds its graph in an attribute.
    let case = ModelProto::decode(&bytes[..]).expect("a case");
    let nodes = case.graph.into_iter().flat_map(|graph| graph.node);
    let mut attributes = nodes.flat_map(|node| node.attribute);
    let model = attributes.find(|attribute| attribute.name == "model").expect("a graph");
    (name, model.s)
}

/// Flips bits, cuts, doubles or overwrites a stretch.
pub fn break_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let stretch = bytes[at..end].to_vec();
                bytes.splice(at..at, stretch);
            }
            3 => bytes[at] = random.below(256) as u8,
            _ => bytes[at] ^= 1 << random.below(8),
        }
    }
}

/// Changes one to four things of a graph, each to something that a message may well say.
/// `donor` gives nodes and attributes of another kind.
pub fn break_message(model: &mut ModelProto, donor: &ModelProto, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        if random.below(24) == 0 {
            let version = random.number();
            model.opset_import.iter_mut().for_each(|opset| opset.version = version);
        }
        if let Some(graph) = &mut model.graph {
            break_graph(graph, donor.graph.as_ref(), random);
        }
    }
}

fn break_graph(graph: &mut GraphProto, donor: Option<&GraphProto>, random: &mut Random) {
    match random.below(8) {
        0 | 1 => break_nodes(graph, donor, random),
        2 | 3 => {
            if let Some(at) = random.index(&graph.initializer) {
                break_tensor(&mut graph.initializer[at], random);
            } else {
                break_nodes(graph, donor, random);
            }
        }
        4 => {
            let values = if random.below(3) == 0 { &mut graph.output } else { &mut graph.input };
            if let Some(at) = random.index(values) {
                break_value(&mut values[at], random);
            }
        }
        _ => {
            if let Some(at) = random.index(&graph.node) {
                break_node(&mut graph.node[at], donor, random);
            }
        }
    }
}

fn break_nodes(graph: &mut GraphProto, donor: Option<&GraphProto>, random: &mut Random) {
    let names: Vec<String> = graph
        .node
        .iter()
        .flat_map(|node| node.input.iter().chain(&node.output))
        .chain(graph.initializer.iter().map(|tensor| &tensor.name))
        .cloned()
        .collect();
    let Some(at) = random.index(&graph.node) else { return };
    match random.below(8) {
        0 => drop(graph.node.remove(at)),
        1 => graph.node.push(graph.node[at].clone()),
        2 => {
            let other = random.below(graph.node.len());
            graph.node.swap(at, other);
        }
        3 => {
            if let Some(node) = donor.and_then(|donor| random.of(&donor.node)) {
                graph.node[at].op_type.clone_from(&node.op_type);
                graph.node[at].domain.clone_from(&node.domain);
            }
        }
        _ => {
            let node = &mut graph.node[at];
            let ends = if random.below(4) == 0 { &mut node.output } else { &mut node.input };
            let name = random.of(&names).cloned().unwrap_or_default();
            match (random.index(ends), random.below(5)) {
                (Some(at), 0) => drop(ends.remove(at)),
                (Some(at), 1) => ends[at].clear(),
                (Some(at), 2 | 3) => ends[at] = name,
                _ => ends.push(name),
            }
        }
    }
}

fn break_node(node: &mut NodeProto, donor: Option<&GraphProto>, random: &mut Random) {
    let Some(at) = random.index(&node.attribute) else { return };
    match random.below(8) {
        0 => drop(node.attribute.remove(at)),
        1 => {
            let donors = donor.iter().flat_map(|graph| &graph.node);
            let donors: Vec<_> = donors.flat_map(|node| &node.attribute).collect();
            if let Some(&attribute) = random.of(&donors) {
                let name = node.attribute[at].name.clone();
                node.attribute[at] = AttributeProto { name, ..attribute.clone() };
            }
        }
        _ => break_attribute(&mut node.attribute[at], donor, random),
    }
}

fn break_attribute(
    attribute: &mut AttributeProto,
    donor: Option<&GraphProto>,
    random: &mut Random,
) {
    if let Some(graph) = &mut attribute.g {
        return break_graph(graph, donor, random);
    }
    if let Some(tensor) = &mut attribute.t {
        return break_tensor(tensor, random);
    }
    if let Some(at) = random.index(&attribute.ints) {
        let number = random.number();
        return break_list(&mut attribute.ints, at, number, random);
    }
    if let Some(at) = random.index(&attribute.floats) {
        let number = FLOATS[random.below(FLOATS.len())];
        return break_list(&mut attribute.floats, at, number, random);
    }
    if let Some(at) = random.index(&attribute.strings) {
        let text = attribute.strings[random.below(attribute.strings.len())].clone();
        return break_list(&mut attribute.strings, at, text, random);
    }
    match random.below(4) {
        0 => attribute.r#type = random.below(16) as i32,
        1 if !attribute.s.is_empty() => break_bytes(&mut attribute.s, random),
        2 => attribute.f = FLOATS[random.below(FLOATS.len())],
        _ => attribute.i = random.number(),
    }
}

fn break_list<T: Clone>(list: &mut Vec<T>, at: usize, value: T, random: &mut Random) {
    match random.below(6) {
        0 => drop(list.remove(at)),
        1 => list.push(value),
        2 => list.clear(),
        3 => {
            let other = random.below(list.len());
            list.swap(at, other);
        }
        _ => list[at] = value,
    }
}

fn break_tensor(tensor: &mut TensorProto, random: &mut Random) {
    match random.below(6) {
        0 => tensor.data_type = random.below(24) as i32,
        1 | 2 => {
            let number = random.number();
            match random.index(&tensor.dims) {
                Some(at) => break_list(&mut tensor.dims, at, number, random),
                None => tensor.dims.push(number),
            }
        }
        3 if tensor.raw_data.len() >= 8 => {
            // Most often a size, an index or a count.
            let at = random.below(tensor.raw_data.len() / 8) * 8;
            let number = random.number().to_le_bytes();
            tensor.raw_data[at..at + 8].copy_from_slice(&number);
        }
        _ if !tensor.raw_data.is_empty() => break_bytes(&mut tensor.raw_data, random),
        _ => {
            let number = random.number();
            if let Some(at) = random.index(&tensor.int64_data) {
                break_list(&mut tensor.int64_data, at, number, random);
            } else if let Some(at) = random.index(&tensor.float_data) {
                break_list(&mut tensor.float_data, at, number as f32, random);
            } else {
                tensor.int64_data.push(number);
            }
        }
    }
}

fn break_value(value: &mut ValueInfoProto, random: &mut Random) {
    let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    let Some(type_proto::Value::TensorType(tensor)) = kind else { return };
    if random.below(3) == 0 {
        tensor.elem_type = random.below(17) as i32;
    } else if let Some(shape) = &mut tensor.shape {
        match random.index(&shape.dim) {
            Some(at) if random.below(4) == 0 => drop(shape.dim.remove(at)),
            Some(at) if random.below(3) == 0 => shape.dim[at].value = None,
            Some(at) => {
                shape.dim[at].value = Some(dimension::Value::DimValue(random.number()));
            }
            None => shape.dim.push(Default::default()),
        }
    }
}
