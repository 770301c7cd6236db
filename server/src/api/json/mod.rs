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

pub(super) use read::{parse, parse_answer};
pub(super) use write::{Elements, Written, check_json, write};
