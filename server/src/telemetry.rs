//! The log: to stderr, as text or JSON lines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging for the whole process.
///
/// # Errors
/// `filter` is not a tracing filter.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // wasi-nn logs every error that a guest sees as one of the server's; they are told with the
    // request that they fail. Cranelift and tract narrate at info.
    let filter =
        format!("wasmtime_wasi_nn=off,tract_core=warn,tract_onnx=warn,tract_hir=warn,{filter}");
    let filter = EnvFilter::builder()
        .parse(&filter)
        .map_err(|error| anyhow::anyhow!("setting log: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), "panic: {info}");
    }));
    Ok(())
}
