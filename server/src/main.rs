//! The `wisp` binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: wisp_engine::memory::Allocator = wisp_engine::memory::Allocator::new();

fn main() -> ExitCode {
    wisp::cli::run().unwrap_or_else(|error| {
        eprintln!("wisp: {error:#}");
        ExitCode::FAILURE
    })
}
