//! The log: to stderr, as text or JSON lines.

use std::io::{IsTerminal, Write};

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        // Not through tracing: the panic may be its own.
        let line = format!("panic in thread {}: {info}\n", thread.name().unwrap_or("unnamed"));
        Stderr.write_all(line.as_bytes()).expect("it never fails");
    }));
    Ok(())
}

/// stderr, as far as it goes: a full disk or a reader that is gone must not stop the server.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
