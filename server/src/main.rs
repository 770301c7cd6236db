//! The `wisp` binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: wisp::memory::Allocator = wisp::memory::Allocator::new();

fn main() -> ExitCode {
    wisp::cli::run().unwrap_or_else(|error| {
        eprintln!("wisp: {error:#}");
        ExitCode::FAILURE
    })
}
