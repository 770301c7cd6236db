//! ONNX graphs on CPUs: one [`Graph`], run by one of several engines behind [`Session`].
//!
//! Nothing here knows of requests, guests, bundles or Wasm: a graph's bytes and tensors come in,
//! tensors go out, and who calls says when to stop. Each engine has its room and only that room
//! names its library.

mod batch;
mod choose;
mod clock;
pub mod compare;
mod contract;
mod cores;
mod functions;
mod graph;
mod guard;
mod kind;
pub mod memory;
mod messages;
mod narrow;
mod once;
mod onnxruntime;
mod rten;
mod sizes;
mod sound;
mod stack;
pub mod tensor;
mod tract;
mod versions;
mod whole;
mod worker;
mod zip_map;

pub use batch::{Batches, measure_batches, rows, split, stack};
pub use choose::{Candidate, Choice, Inputs, Verdict, choose, generated};
pub use cores::{Busy, Cores, Helpers, Turn};
pub use graph::{Compiled, Failure, Graph, LoadError, Session, Watch};
pub use kind::EngineKind;
pub use onnxruntime::OnnxRuntime;
pub use stack::with_stack;
pub use tensor::Value;
