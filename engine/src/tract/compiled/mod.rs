//! Compiled plans: a graph after all that is slow (read, typed, simplified, fused, packed), in a
//! form that is mapped into memory and used where it lies. What is left to do is tract's choice of
//! its own kernels, so any processor can use the file.
//!
//! ```text
//! magic, length of the small part, its digest, length of the large part: 8 bytes each
//! small part: version of this program, key, contract, names of free sizes, nodes; of what is in
//!             the large part, lengths and digests
//! large part, from the next page on: constants and packed weights, each aligned
//! ```
//!
//! Digests tell what a disk has made of a file. They are no defence: nobody else can write to
//! where these files lie.

mod kernels;
mod operators;
mod parts;
mod sizes;

use std::io::{self, Write};

use bytes::Bytes;
use rapidhash::v3::rapidhash_v3;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::tract_core::ops::source::TypedSource;

use crate::tensor::{Contract, Datatype, TensorSpec};
use crate::tract::chain;
pub(super) use parts::{Reader, Stored, Writer, stored_struct};

const MAGIC: &[u8; 8] = b"wispplan";

/// Changes where what is written, or what it means, does.
const FORMAT: u32 = 7;

const HEADER: usize = 32;
const PAGE: usize = 4096;

/// Writes a plan as a file of that key.
///
/// # Errors
/// The writer's, or the graph has something that cannot be held: nothing was written then.
pub(super) fn write(
    key: &str,
    contract: &Contract,
    model: &TypedModel,
    to: &mut dyn Write,
) -> io::Result<()> {
    let mut writer = Writer::default();
    writer.text(&version());
    writer.text(key);
    let put = contract.put(&mut writer).and_then(|()| put_model(model, &mut writer));
    put.ok_or_else(|| io::Error::other("a compiled plan cannot hold it"))?;
    let Writer { mut small, large, end, .. } = writer;
    large.iter().filter(|bytes| !bytes.is_empty()).for_each(|bytes| {
        small.extend((bytes.len() as u64).to_le_bytes());
        small.extend(rapidhash_v3(bytes).to_le_bytes());
    });
    to.write_all(MAGIC)?;
    for number in [small.len() as u64, rapidhash_v3(&small), end as u64] {
        to.write_all(&number.to_le_bytes())?;
    }
    to.write_all(&small)?;
    pad(HEADER + small.len(), PAGE, to)?;
    for bytes in large {
        to.write_all(bytes)?;
        pad(bytes.len(), parts::ALIGNMENT, to)?;
    }
    Ok(())
}

fn pad(length: usize, to_multiple_of: usize, to: &mut dyn Write) -> io::Result<()> {
    let missing = length.next_multiple_of(to_multiple_of) - length;
    to.write_all(&[0; PAGE][..missing])
}

/// What [`write()`] wrote for that key, without its copy.
///
/// # Errors
/// A text: the file is damaged, another's, or of another version of this program.
pub(super) fn read(file: &Bytes, key: &str) -> Result<(Contract, TypedModel), String> {
    let (small, large) = parts_of(file).ok_or("it is damaged")?;
    let mut model = TypedModel::default();
    let symbols = model.symbols.clone();
    let mut reader = Reader { small, large: &large, symbols: &symbols };
    let mut text = || String::take(&mut reader);
    if text() != Some(version()) {
        return Err("another version of this program wrote it".to_owned());
    }
    if text().as_deref() != Some(key) {
        return Err("it is another graph's".to_owned());
    }
    let contract = Contract::take(&mut reader).ok_or("it is damaged")?;
    match take_model(&mut reader, &mut model) {
        Ok(Some(())) if are_whole(reader) => Ok((contract, model)),
        Ok(_) => Err("it is damaged".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

/// Whether what is left to read are the lengths and digests of all of the large part.
fn are_whole(mut reader: Reader<'_>) -> bool {
    let mut rest = &reader.large[..];
    while !rest.is_empty() {
        let Some([length, digest]) = <[u64; 2]>::take(&mut reader) else { return false };
        let length = usize::try_from(length).ok().filter(|&length| length > 0);
        let bytes = length.and_then(|length| rest.get(..length));
        let Some(bytes) = bytes.filter(|bytes| rapidhash_v3(bytes) == digest) else { return false };
        rest = &rest[bytes.len().next_multiple_of(parts::ALIGNMENT).min(rest.len())..];
    }
    reader.small.is_empty()
}

stored_struct!(Contract { inputs, outputs });
stored_struct!(TensorSpec { name, datatype, shape });

impl Stored for Datatype {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.text(self.name());
        Some(())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Datatype::parse(&String::take(from)?)
    }
}

fn version() -> String {
    format!("{} {FORMAT}", env!("CARGO_PKG_VERSION"))
}

fn parts_of(file: &Bytes) -> Option<(&[u8], Bytes)> {
    let (header, rest) = file.split_at_checked(HEADER)?;
    let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let length = |at: usize| usize::try_from(number(at)?).ok();
    let small = rest.get(..length(8)?)?;
    let from = (HEADER + small.len()).next_multiple_of(PAGE);
    let is_whole = from.checked_add(length(24)?) == Some(file.len());
    let is_ours = header.starts_with(MAGIC) && number(16)? == rapidhash_v3(small);
    (is_whole && is_ours).then(|| (small, file.slice(from..)))
}

/// Whether a plan of this model can be held, and so runs with any sizes that fit its inputs.
pub(super) fn holds(model: &TypedModel) -> bool {
    put_model(model, &mut Writer::default()).is_some()
}

/// Whether an operator can be held. Sources are no operators.
pub(super) fn holds_operator(node: &TypedNode) -> bool {
    node.op_is::<TypedSource>() || operators::put(&*node.op, &mut Writer::default()).is_some()
}

fn put_model<'a>(model: &'a TypedModel, to: &mut Writer<'a>) -> Option<()> {
    if !model.symbols.all_assertions().is_empty() {
        return None;
    }
    let symbols = model.symbols.all_symbols();
    to.number(symbols.len());
    symbols.iter().for_each(|symbol| to.text(&symbol.to_string()));
    to.number(model.nodes().len());
    for node in model.nodes() {
        to.text(&node.name);
        let is_source = model.inputs.iter().any(|input| input.node == node.id);
        to.small.push(u8::from(is_source));
        if is_source {
            let fact = &node.outputs[0].fact;
            fact.datum_type.put(to)?;
            fact.shape.put(to)?;
            continue;
        }
        // They are read in this order.
        if node.inputs.iter().any(|input| input.node >= node.id) {
            return None;
        }
        operators::put(&*node.op, to)?;
        put_outlets(&node.inputs, to);
    }
    put_outlets(&model.inputs, to);
    put_outlets(&model.outputs, to);
    Some(())
}

fn put_outlets(outlets: &[OutletId], to: &mut Writer<'_>) {
    to.number(outlets.len());
    for outlet in outlets {
        to.number(outlet.node);
        to.number(outlet.slot);
    }
}

fn take_model(from: &mut Reader<'_>, model: &mut TypedModel) -> TractResult<Option<()>> {
    let Some(symbols) = Vec::<String>::take(from) else { return Ok(None) };
    symbols.iter().for_each(|symbol| drop(model.symbols.sym(symbol)));
    let Some(count) = usize::take(from) else { return Ok(None) };
    for _ in 0..count {
        let named = String::take(from).zip(bool::take(from));
        let Some((name, is_source)) = named else { return Ok(None) };
        if is_source {
            let fact = DatumType::take(from).zip(ShapeFact::take(from));
            let Some((datum, shape)) = fact else { return Ok(None) };
            model.add_source(name, datum.fact(shape))?;
            continue;
        }
        let node = operators::take(from).zip(take_outlets(from, model));
        let Some((op, inputs)) = node else { return Ok(None) };
        let facts = {
            let facts = inputs.iter().map(|&input| model.outlet_fact(input));
            op.output_facts(&facts.collect::<TractResult<TVec<_>>>()?)?
        };
        let id = model.add_node(name, op, facts)?;
        for (slot, &input) in inputs.iter().enumerate() {
            model.add_edge(input, InletId::new(id, slot))?;
        }
    }
    let ends = take_outlets(from, model).zip(take_outlets(from, model));
    let Some((inputs, outputs)) = ends else { return Ok(None) };
    model.inputs = inputs;
    model.outputs = outputs;
    Ok(Some(()))
}

/// Outlets of nodes that have been read.
fn take_outlets(from: &mut Reader<'_>, model: &TypedModel) -> Option<Vec<OutletId>> {
    let places = Vec::<[usize; 2]>::take(from)?;
    let outlets = places.into_iter().map(|[node, slot]| {
        let is_there = model.nodes().get(node)?.outputs.len() > slot;
        is_there.then(|| OutletId::new(node, slot))
    });
    outlets.collect()
}
