//! f32 kernels for inference: matrix multiplication and convolution, whose work a caller's threads may share.
//!
//! What lives here: arithmetic on plain slices, chosen once for the processor at hand. What must never live here:
//! graphs, tensors' reference counts, threads, files.

#![warn(missing_docs)]
#![expect(
    clippy::needless_range_loop,
    reason = "indices that the compiler knows keep sums in registers"
)]

mod blocks;
pub mod columns;
mod constant;
mod conv;
pub mod depthwise;
mod direct;
pub mod elementwise;
mod epilogue;
mod gemm;
mod lstm;
mod packed;
pub mod pool;
pub mod quantized;
mod rows;
mod simd;
mod team;
#[cfg(test)]
mod testing;
mod tile;
mod whole;
pub mod window;
mod winograd;

pub use conv::{Conv2d, Geometry, Images};
pub use epilogue::{Activation, Epilogue, ResidualOrder, Steps};
pub use gemm::{linear, product};
pub use lstm::Lstm;
pub use packed::{Packed, Scratch, ShapeError, View};
pub use simd::Level;
pub use team::{Alone, Room, Team, share_values};
pub use whole::{Grid, Layout, Whole, WholeConv, WholeParts};
pub use winograd::Winograd;
