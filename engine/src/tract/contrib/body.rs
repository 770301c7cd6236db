//! The nodes that stand for one.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};

/// The nodes that stand for one, while they are written.
pub(super) struct Body<'a> {
    node: &'a NodeProto,
    prefix: &'a str,
    nodes: Vec<NodeProto>,
    /// Whether the operator set is 13 or later.
    is_recent: bool,
}

impl<'a> Body<'a> {
    /// For a node, of values whose names start with `prefix`.
    pub(super) fn new(node: &'a NodeProto, prefix: &'a str, is_recent: bool) -> Self {
        Self { node, prefix, nodes: Vec::new(), is_recent }
    }

    pub(super) fn nodes(self) -> Vec<NodeProto> {
        self.nodes
    }

    pub(super) fn is_recent(&self) -> bool {
        self.is_recent
    }

    /// An input; `None` where the node leaves it out.
    pub(super) fn given(&self, index: usize) -> Option<&'a str> {
        self.node.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// # Errors
    /// The node leaves it out.
    pub(super) fn input(&self, index: usize) -> Result<&'a str, String> {
        self.given(index).ok_or_else(|| format!("input {index} is not given"))
    }

    pub(super) fn inputs(&self) -> usize {
        self.node.input.len()
    }

    /// Whether anything takes an output.
    pub(super) fn is_wanted(&self, index: usize) -> bool {
        self.node.output.get(index).is_some_and(|name| !name.is_empty())
    }

    /// One of another type is none: what it holds lies elsewhere.
    fn attribute(&self, name: &str, kind: AttributeType) -> Option<&'a AttributeProto> {
        let is_it = |it: &&AttributeProto| it.name == name && it.r#type == kind as i32;
        self.node.attribute.iter().find(is_it)
    }

    pub(super) fn int(&self, name: &str, otherwise: i64) -> i64 {
        self.attribute(name, AttributeType::Int).map_or(otherwise, |attribute| attribute.i)
    }

    pub(super) fn float(&self, name: &str, otherwise: f32) -> f32 {
        self.given_float(name).unwrap_or(otherwise)
    }

    /// `None` where it is not given.
    pub(super) fn given_float(&self, name: &str) -> Option<f32> {
        let whole = || self.attribute(name, AttributeType::Int).map(|attribute| attribute.i as f32);
        self.attribute(name, AttributeType::Float).map(|attribute| attribute.f).or_else(whole)
    }

    pub(super) fn ints(&self, name: &str) -> &'a [i64] {
        self.attribute(name, AttributeType::Ints).map_or(&[], |attribute| &attribute.ints)
    }

    pub(super) fn floats(&self, name: &str) -> &'a [f32] {
        self.attribute(name, AttributeType::Floats).map_or(&[], |attribute| &attribute.floats)
    }

    /// Empty where it is not given.
    pub(super) fn text(&self, name: &str) -> &'a str {
        let text = self.attribute(name, AttributeType::String);
        text.and_then(|attribute| str::from_utf8(&attribute.s).ok()).unwrap_or_default()
    }

    /// The attributes of these names that the node has.
    pub(super) fn attributes(&self, names: &[&str]) -> Vec<AttributeProto> {
        let all = self.node.attribute.iter();
        all.filter(|attribute| names.contains(&attribute.name.as_str())).cloned().collect()
    }

    /// An operator's first output.
    pub(super) fn op(&mut self, kind: &str, inputs: &[&str]) -> String {
        self.op_with(kind, inputs, Vec::new())
    }

    pub(super) fn op_with(
        &mut self,
        kind: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let [output] = self.outputs_with(kind, inputs, attributes);
        output
    }

    pub(super) fn outputs_with<const N: usize>(
        &mut self,
        kind: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> [String; N] {
        let number = self.nodes.len();
        let output = std::array::from_fn(|index| format!("{}{number}.{index}", self.prefix));
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: output.to_vec(),
            op_type: kind.to_owned(),
            attribute,
            ..NodeProto::default()
        });
        output
    }

    /// Makes a value an output, where that is wanted.
    pub(super) fn give(&mut self, index: usize, value: &str) {
        if !self.is_wanted(index) {
            return;
        }
        let output = self.node.output[index].clone();
        self.nodes.push(NodeProto {
            input: vec![value.to_owned()],
            output: vec![output],
            // Another node may have the name of the output.
            name: format!("{}given {index}", self.prefix),
            op_type: "Identity".to_owned(),
            ..NodeProto::default()
        });
    }

    /// A tensor of INT64, of rank 1.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        self.constant(TensorProto {
            data_type: DataType::Int64 as i32,
            dims: vec![values.len() as i64],
            int64_data: values.to_vec(),
            ..TensorProto::default()
        })
    }

    /// A scalar of INT64.
    pub(super) fn integer(&mut self, value: i64) -> String {
        self.constant(TensorProto {
            data_type: DataType::Int64 as i32,
            int64_data: vec![value],
            ..TensorProto::default()
        })
    }

    /// A scalar of FP32.
    pub(super) fn single(&mut self, value: f32) -> String {
        self.constant(TensorProto {
            data_type: DataType::Float as i32,
            float_data: vec![value],
            ..TensorProto::default()
        })
    }

    /// A scalar of the floats that another value is of.
    pub(super) fn number(&mut self, value: f32, like: &str) -> String {
        let number = self.single(value);
        self.op("CastLike", &[&number, like])
    }

    fn constant(&mut self, tensor: TensorProto) -> String {
        let value = AttributeProto {
            name: "value".to_owned(),
            r#type: AttributeType::Tensor as i32,
            t: Some(tensor),
            ..AttributeProto::default()
        };
        self.op_with("Constant", &[], vec![value])
    }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Float as i32,
        f: value,
        ..AttributeProto::default()
    }
}
