//! Sums of products of whole numbers, ONNX's ConvInteger and MatMulInteger: which of them are needed as
//! what they are, and which of those floats hold, too. What they are written with stands in `quantized`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ptr;
use std::rc::Rc;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use crate::messages::graphs_in;
use crate::tract::File;

/// Up to here floats hold every whole number.
const MOST_OF_FLOATS: u64 = 1 << 24;

/// How far a whole number of 8 bits can be from its zero point.
const FARTHEST: u64 = 255;

/// The values that are needed as what they are: not only as floats, by a Cast. Of the whole file, so
/// that of two values of one name neither is lost.
pub(super) fn exact_values(graph: &GraphProto) -> HashSet<&str> {
    let mut exact = HashSet::new();
    see(graph, &mut exact);
    exact
}

fn see<'a>(graph: &'a GraphProto, exact: &mut HashSet<&'a str>) {
    exact.extend(graph.output.iter().map(|output| output.name.as_str()));
    for node in &graph.node {
        let to = node.attribute.iter().find(|attribute| attribute.name == "to");
        let is_cast = node.op_type == "Cast" && to.is_some_and(|to| to.i == DataType::Float as i64);
        if !is_cast {
            exact.extend(node.input.iter().map(String::as_str));
        }
        graphs_in(node).for_each(|inner| see(inner, exact));
    }
}

/// What a graph's nodes see, as it was read.
pub(super) struct Scope<'a> {
    file: &'a File<'a>,
    graph: &'a GraphProto,
    /// The graph's own values, with what they hold where that is known.
    own: HashMap<&'a str, Option<&'a TensorProto>>,
    around: Option<&'a Scope<'a>>,
    /// Whether floats hold the sums of weights that were looked through: thousands of nodes may have
    /// the same. One for all graphs of the file.
    known: Rc<RefCell<HashMap<Weights, bool>>>,
}

/// Of a node: whether it is a ConvInteger, whether it has zero points, and where the file has its
/// weights and those.
type Weights = (bool, bool, [*const TensorProto; 2]);

impl<'a> Scope<'a> {
    pub(super) fn of(file: &'a File<'a>, graph: &'a GraphProto) -> Self {
        Self::new(file, graph, None)
    }

    /// Of a graph inside this one.
    pub(super) fn inner<'b>(&'b self, graph: &'b GraphProto) -> Scope<'b> {
        Scope::new(self.file, graph, Some(self))
    }

    fn new(file: &'a File<'a>, graph: &'a GraphProto, around: Option<&'a Scope<'a>>) -> Self {
        let held = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), Some(tensor)));
        // What comes in may be something else than what is held under its name.
        let given = graph.input.iter().map(|input| (input.name.as_str(), None));
        let made = graph.node.iter().flat_map(|node| {
            let constant = constant(node);
            node.output.iter().map(move |name| (name.as_str(), constant))
        });
        let own = held.chain(given).chain(made).collect();
        let known = around.map(|around| around.known.clone()).unwrap_or_default();
        Self { file, graph, own, around, known }
    }

    pub(super) fn nodes(&self) -> &'a [NodeProto] {
        &self.graph.node
    }

    /// Whether floats hold all that a node of the graph may come to on the way to its sums, by its
    /// weights.
    pub(super) fn fits_floats(&self, node: &NodeProto) -> bool {
        let name = |index: usize| node.input.get(index).filter(|name| !name.is_empty());
        let place = |index: usize| {
            let tensor = name(index).and_then(|name| self.constant(name));
            tensor.map_or(ptr::null(), ptr::from_ref)
        };
        let weights = (node.op_type == "ConvInteger", name(3).is_some(), [1, 3].map(place));
        if let Some(&fits) = self.known.borrow().get(&weights) {
            return fits;
        }
        let fits = self.largest_sum(node).is_some_and(|sum| sum < MOST_OF_FLOATS);
        self.known.borrow_mut().insert(weights, fits);
        fits
    }

    /// `None` where the weights or their zero points are no constants.
    fn largest_sum(&self, node: &NodeProto) -> Option<u64> {
        let weights = self.numbers(node.input.get(1)?)?;
        let (mut least, mut most) = (0, 0);
        if let Some(zeros) = node.input.get(3).filter(|name| !name.is_empty()) {
            let zeros = self.numbers(zeros)?;
            least = zeros.bytes.iter().map(|&byte| zeros.number(byte)).min()?;
            most = zeros.bytes.iter().map(|&byte| zeros.number(byte)).max()?;
        }
        let (terms, columns) = match &weights.shape[..] {
            [_, window @ ..] if node.op_type == "ConvInteger" => {
                (window.iter().product::<usize>(), 1)
            }
            [.., terms, columns] => (*terms, *columns),
            [terms] => (*terms, 1),
            [] => return None,
        };
        let farthest = |byte: u8| {
            let number = weights.number(byte);
            u64::from(number.abs_diff(least).max(number.abs_diff(most)))
        };
        let mut largest = 0;
        for matrix in weights.bytes.chunks((terms * columns).max(1)) {
            let mut sums = vec![0u64; columns];
            for line in matrix.chunks(columns) {
                sums.iter_mut().zip(line).for_each(|(sum, &byte)| *sum += farthest(byte));
            }
            largest = sums.into_iter().fold(largest, Ord::max);
        }
        Some(FARTHEST * largest)
    }

    /// Those of a constant of 8 bits, if there are any.
    fn numbers(&self, name: &str) -> Option<Numbers<'a>> {
        let tensor = self.constant(name)?;
        let (datatype, shape, bytes) = match self.file.large(tensor) {
            Some((datatype, shape, bytes)) => (datatype, shape.to_vec(), Cow::Borrowed(bytes)),
            None => {
                let shape = tensor.dims.iter().map(|&size| usize::try_from(size).ok());
                let bytes: Cow<'a, [u8]> = match &tensor.raw_data[..] {
                    [] => tensor.int32_data.iter().map(|&number| number as u8).collect(),
                    raw_data => Cow::Borrowed(raw_data),
                };
                let datatype = DataType::try_from(tensor.data_type).ok()?;
                (datatype, shape.collect::<Option<Vec<usize>>>()?, bytes)
            }
        };
        let is_signed = match datatype {
            DataType::Int8 => true,
            DataType::Uint8 => false,
            _ => return None,
        };
        let is_sound = !bytes.is_empty() && shape.iter().product::<usize>() == bytes.len();
        is_sound.then_some(Numbers { shape, bytes, is_signed })
    }

    fn constant(&self, name: &str) -> Option<&'a TensorProto> {
        match self.own.get(name) {
            Some(held) => *held,
            None => self.around?.constant(name),
        }
    }
}

fn constant(node: &NodeProto) -> Option<&TensorProto> {
    let value = node.attribute.iter().find(|attribute| attribute.name == "value");
    value.filter(|_| node.op_type == "Constant")?.t.as_ref()
}

/// Whole numbers of 8 bits.
struct Numbers<'a> {
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
    is_signed: bool,
}

impl Numbers<'_> {
    fn number(&self, byte: u8) -> i32 {
        match self.is_signed {
            true => (byte as i8).into(),
            false => byte.into(),
        }
    }
}
