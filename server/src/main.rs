//! The `wisp` binary.

use std::process::ExitCode;

/// glibc gives freed tensors back to the system and faults them in again at the next request:
/// a 600 KB round trip takes some ten times as long.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wisp::cli::run().unwrap_or_else(|error| {
        eprintln!("wisp: {error:#}");
        ExitCode::FAILURE
    })
}
