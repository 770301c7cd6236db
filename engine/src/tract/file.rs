//! An ONNX file as messages, but for its large weights: those stay where the file lies and are
//! copied once, into tract's tensors. A decoder would copy all of them first.

use std::borrow::Cow;
use std::sync::Arc;

use prost::Message;
use tract_onnx::pb::{self, TensorProto, tensor_proto::DataType};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::ops::konst::Const;

use super::{chain, values, widen};
use crate::graph::LoadError;
use crate::narrow::Narrow;
use crate::{functions, messages, zip_map};

/// Weights of fewer bytes are read with the rest.
const LARGE: usize = 4096;

/// What stands in a graph for weights that are not there yet, before their number. An engine
/// takes equal constants for one: each has its own, of a type that weights do not have.
const PLACEHOLDER: &str = "weights left in the file: ";

/// Field numbers of onnx.proto: of a model, a graph and a tensor.
const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const RAW_DATA: u64 = 9;

/// The messages of a file, and the weights that they lack.
#[derive(Debug)]
pub(crate) struct File<'a> {
    pub(crate) proto: pb::ModelProto,
    weights: Vec<Weights<'a>>,
    onnx: &'a [u8],
    rewritten: Option<&'static str>,
    /// Whether the messages are the file's own.
    is_as_read: bool,
}

/// A tensor whose elements are its bytes.
#[derive(Debug, PartialEq)]
struct Weights<'a> {
    datatype: DataType,
    /// tract's type for it, or for its bits.
    datum: DatumType,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> File<'a> {
    /// Reads the bytes of an ONNX file.
    ///
    /// # Errors
    /// They are not ONNX, or its functions cannot be put where they are called.
    pub(crate) fn read(onnx: &'a [u8]) -> Result<Self, LoadError> {
        // What cannot be taken apart is the decoder's to refuse.
        let (rest, apart) = take_apart(onnx).unzip();
        let proto = pb::ModelProto::decode(rest.as_deref().unwrap_or(onnx));
        let mut proto = proto.map_err(|error| LoadError(format!("not an ONNX file: {error}")))?;
        let initializers = proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
        let mut weights = Vec::new();
        for (tensor, bytes) in initializers.zip(apart.unwrap_or_default()) {
            let Some(bytes) = bytes else { continue };
            match Weights::of(tensor, bytes) {
                Some(found) => {
                    stand_in(tensor, weights.len());
                    weights.push(found);
                }
                None => tensor.raw_data = bytes.to_vec(),
            }
        }
        let has_functions = functions::inline(&mut proto, onnx)?;
        let has_maps = proto.graph.as_mut().is_some_and(zip_map::strip);
        let is_trimmed = proto.graph.as_mut().is_some_and(|graph| messages::trim(&mut graph.node));
        let rewritten = match (has_functions, has_maps) {
            (true, _) => Some("functions of a file's own"),
            (false, true) => Some("maps as outputs"),
            (false, false) => None,
        };
        let is_as_read = rewritten.is_none() && !is_trimmed;
        Ok(Self { proto, weights, onnx, rewritten, is_as_read })
    }

    /// What the file has and no engine here reads: the messages have other nodes for it. See
    /// [`functions`] and [`zip_map`].
    pub(crate) fn rewritten(&self) -> Option<&'static str> {
        self.rewritten
    }

    /// The bytes that it was read from.
    pub(crate) fn onnx(&self) -> &'a [u8] {
        self.onnx
    }

    /// A wanted datatype of narrow numbers that is anywhere in it.
    pub(super) fn find(&self, is_wanted: &dyn Fn(Narrow) -> bool) -> Option<Narrow> {
        let mut large = self.weights.iter().filter_map(Weights::narrow);
        let in_graph = || widen::find(self.proto.graph.as_ref()?, is_wanted);
        large.find(|&narrow| is_wanted(narrow)).or_else(in_graph)
    }

    /// Bytes of the file that it was read from.
    pub(super) fn len(&self) -> usize {
        self.onnx.len()
    }

    /// The bytes of an ONNX file of these messages, with all weights: the file's own, or, where nodes
    /// are others, new ones. Those lack all that tract's messages do, as the types of values that are
    /// no tensors.
    pub(crate) fn bytes(&self) -> Cow<'a, [u8]> {
        if self.is_as_read {
            return Cow::Borrowed(self.onnx);
        }
        let mut proto = self.proto.clone();
        for tensor in proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            let Some((datatype, shape, bytes)) = self.large(tensor) else { continue };
            tensor.data_type = datatype as i32;
            tensor.dims = shape.iter().map(|&size| size as i64).collect();
            tensor.raw_data = bytes.to_vec();
            tensor.string_data.clear();
        }
        Cow::Owned(proto.encode_to_vec())
    }

    /// The weights that an initializer stands for: their type, shape and bytes.
    pub(crate) fn large(&self, tensor: &TensorProto) -> Option<(DataType, &[usize], &'a [u8])> {
        let [text] = &*tensor.string_data else { return None };
        let weights = self.weights.get(number(str::from_utf8(text).ok()?)?)?;
        Some((weights.datatype, &weights.shape, weights.bytes))
    }

    /// Puts the weights where they belong in the model that was built from the messages, which were
    /// made FP32 where it `widens`.
    ///
    /// # Errors
    /// tract's.
    pub(super) fn put_weights(
        &self,
        model: &mut InferenceModel,
        widens: bool,
    ) -> Result<(), LoadError> {
        let cannot = |error: TractError| LoadError(format!("cannot be read: {}", chain(&error)));
        let mut tensors: Vec<Option<Arc<Tensor>>> = vec![None; self.weights.len()];
        for node in &mut model.nodes {
            let Some(index) = node.op_as::<Const>().and_then(|op| number_in(op.val())) else {
                continue;
            };
            let Some(weights) = self.weights.get(index) else { continue };
            // Some exporters write tied weights twice.
            let same = self.weights[..index].iter().position(|other| other == weights);
            let first = same.unwrap_or(index);
            let tensor = match &tensors[first] {
                Some(tensor) => tensor.clone(),
                None => Arc::new(weights.copy(widens).map_err(cannot)?),
            };
            tensors[first] = Some(tensor.clone());
            let fact = TypedFact::try_from(tensor.clone()).map_err(cannot)?;
            node.outputs[0].fact = fact.into();
            node.op = Box::new(Const::new(tensor).map_err(cannot)?);
        }
        Ok(())
    }
}

impl<'a> Weights<'a> {
    /// `None` where the bytes are not the elements, one after the other.
    fn of(tensor: &TensorProto, bytes: &'a [u8]) -> Option<Self> {
        let datatype = DataType::try_from(tensor.data_type).ok()?;
        let datum = match datatype {
            DataType::Uint8 => DatumType::U8,
            DataType::Uint16 => DatumType::U16,
            DataType::Uint32 => DatumType::U32,
            DataType::Uint64 => DatumType::U64,
            DataType::Int8 => DatumType::I8,
            DataType::Int16 => DatumType::I16,
            DataType::Int32 => DatumType::I32,
            DataType::Int64 => DatumType::I64,
            DataType::Float16 => DatumType::F16,
            DataType::Bfloat16 => DatumType::U16,
            DataType::Float8e4m3fn
            | DataType::Float8e4m3fnuz
            | DataType::Float8e5m2
            | DataType::Float8e5m2fnuz => DatumType::U8,
            DataType::Float => DatumType::F32,
            DataType::Double => DatumType::F64,
            _ => return None,
        };
        let shape = tensor.dims.iter().map(|&size| usize::try_from(size).ok());
        let shape: Vec<usize> = shape.collect::<Option<_>>()?;
        let size = shape.iter().try_fold(datum.size_of(), |size, &next| size.checked_mul(next));
        (size == Some(bytes.len())).then_some(Self { datatype, datum, shape, bytes })
    }

    fn narrow(&self) -> Option<Narrow> {
        Narrow::of(self.datatype as i32)
    }

    /// FP16 as FP32, where it `widens`; what is narrower, or BF16, is no other.
    fn copy(&self, widens: bool) -> TractResult<Tensor> {
        if let Some(narrow) = self.narrow().filter(|&narrow| narrow != Narrow::Fp16) {
            return values::widened(narrow, &self.shape, self.bytes);
        }
        // SAFETY: every bit pattern is a value of these types; the length is checked.
        let tensor = unsafe { Tensor::from_raw_dt(self.datum, &self.shape, self.bytes)? };
        match self.datum {
            DatumType::F16 if widens => Ok(tensor.cast_to::<f32>()?.into_owned()),
            _ => Ok(tensor),
        }
    }
}

fn stand_in(tensor: &mut TensorProto, index: usize) {
    tensor.dims.clear();
    tensor.data_type = DataType::String as i32;
    tensor.string_data = vec![format!("{PLACEHOLDER}{index}").into_bytes()];
}

fn number_in(tensor: &Tensor) -> Option<usize> {
    if tensor.datum_type() != DatumType::String || tensor.rank() != 0 {
        return None;
    }
    let text = tensor.try_as_plain_ram().ok()?.to_scalar::<String>().ok()?;
    number(text)
}

/// Of the weights that a placeholder stands for.
fn number(placeholder: &str) -> Option<usize> {
    placeholder.strip_prefix(PLACEHOLDER)?.parse().ok()
}

/// Large weights, by initializer of the graph.
type Apart<'a> = Vec<Option<&'a [u8]>>;

/// The file without the large weights of its graph, and those.
fn take_apart(onnx: &[u8]) -> Option<(Vec<u8>, Apart<'_>)> {
    let mut apart = Vec::new();
    let mut rest = Vec::new();
    for field in fields(onnx)? {
        match field.content.filter(|_| field.number == GRAPH) {
            Some(graph) => put(&mut rest, GRAPH, &take_graph_apart(graph, &mut apart)?),
            None => rest.extend_from_slice(field.whole),
        }
    }
    Some((rest, apart))
}

fn take_graph_apart<'a>(graph: &'a [u8], apart: &mut Apart<'a>) -> Option<Vec<u8>> {
    let mut rest = Vec::new();
    for field in fields(graph)? {
        let Some(tensor) = field.content.filter(|_| field.number == INITIALIZER) else {
            rest.extend_from_slice(field.whole);
            continue;
        };
        let raw_data = large_raw_data(tensor)?;
        match raw_data {
            Some(_) => {
                let others = fields(tensor)?.into_iter().filter(|field| field.number != RAW_DATA);
                let others: Vec<&[u8]> = others.map(|field| field.whole).collect();
                put(&mut rest, INITIALIZER, &others.concat());
            }
            None => rest.extend_from_slice(field.whole),
        }
        apart.push(raw_data);
    }
    Some(rest)
}

fn large_raw_data(tensor: &[u8]) -> Option<Option<&[u8]>> {
    if tensor.len() < LARGE {
        return Some(None);
    }
    let raw_data = fields(tensor)?.into_iter().rfind(|field| field.number == RAW_DATA);
    let content = raw_data.and_then(|field| field.content);
    Some(content.filter(|content| content.len() >= LARGE))
}

/// One field of a protobuf message.
struct Field<'a> {
    number: u64,
    /// With its key.
    whole: &'a [u8],
    /// Of a field that says its length.
    content: Option<&'a [u8]>,
}

/// `None` where a message is not well-formed, or has the groups of old.
fn fields(message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let key = varint(&mut rest)?;
        let mut content = None;
        match key & 7 {
            0 => {
                varint(&mut rest)?;
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                content = Some(rest.get(..length)?);
                rest = &rest[length..];
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
        let whole = &start[..start.len() - rest.len()];
        fields.push(Field { number: key >> 3, whole, content });
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Writes a field that says its length.
fn put(to: &mut Vec<u8>, number: u64, content: &[u8]) {
    for mut value in [number << 3 | 2, content.len() as u64] {
        while value >= 0x80 {
            to.push(value as u8 | 0x80);
            value >>= 7;
        }
        to.push(value as u8);
    }
    to.extend_from_slice(content);
}
