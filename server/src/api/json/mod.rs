//! The protocol's JSON: requests into tensors, answers out of them. Read and written here rather
//! than by serde, as a picture is 150,528 numbers, and both take less than half the time so.

mod cursor;
mod data;
mod float;
mod number;
mod parameters;
mod read;
mod string;
mod write;

use crate::error::Error;
use crate::tensor::Tensor;

pub(super) use read::{parse, parse_answer};
pub(super) use write::{Elements, Written, check_json, write};

/// The inputs of an inference request in JSON, which the bench reads alone.
///
/// # Errors
/// As the client would get.
pub fn read_inputs(json: &[u8]) -> Result<Vec<Tensor>, Error> {
    Ok(parse(json, &[])?.request.inputs)
}

/// A tensor's elements as a flat list in JSON, which the bench writes alone.
///
/// # Errors
/// As the client would get.
pub fn write_elements(tensor: &Tensor) -> Result<Vec<u8>, Error> {
    let mut json = Vec::new();
    check_json(tensor)?;
    write::push_data(&mut json, tensor)?;
    Ok(json)
}
