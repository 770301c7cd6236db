//! The log: to stderr, as text or JSON lines.

use std::io::{IsTerminal, Write};

use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::LogFormat;
use crate::log_levels::LogLevels;

/// Starts logging for the whole process.
///
/// # Errors
/// `filter` is not a tracing filter.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // Cranelift and tract narrate at info.
    let filter = format!("tract_core=warn,tract_onnx=warn,tract_hir=warn,{filter}");
    let filter = EnvFilter::builder()
        .parse(&filter)
        .map_err(|error| anyhow::anyhow!("setting log: {error}"))?;
    let filter = Switched { filter };
    let layer = fmt::layer::<Registry>().with_writer(|| Stderr);
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => {
            let layer = layer.with_ansi(std::io::stderr().is_terminal());
            registry.with(layer.with_filter(filter)).init();
        }
        LogFormat::Json => {
            registry.with(layer.json().flatten_event(true).with_filter(filter)).init();
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        // Not through tracing: the panic may be its own.
        let line = format!("panic in thread {}: {info}\n", thread.name().unwrap_or("unnamed"));
        Stderr.write_all(line.as_bytes()).expect("it never fails");
    }));
    Ok(())
}

/// The operator's filter, and the levels that were switched meanwhile.
struct Switched {
    filter: EnvFilter,
}

impl Switched {
    /// `None`: it is the filter's to say.
    fn own_word(metadata: &Metadata<'_>) -> Option<bool> {
        let levels = LogLevels::now();
        if !levels.lets_through(*metadata.level()) {
            return Some(false);
        }
        let is_own = metadata.target().split("::").next() == Some(env!("CARGO_PKG_NAME"));
        let is_verbose = levels.verbose_level().is_some_and(|most| *metadata.level() <= most);
        (is_own && is_verbose).then_some(true)
    }
}

impl Filter<Registry> for Switched {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, Registry>) -> bool {
        Self::own_word(metadata).unwrap_or_else(|| Filter::enabled(&self.filter, metadata, context))
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match Self::own_word(metadata) {
            Some(true) => Interest::always(),
            Some(false) => Interest::never(),
            None => Filter::<Registry>::callsite_enabled(&self.filter, metadata),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let filter = Filter::<Registry>::max_level_hint(&self.filter)?;
        Some(filter.max(LogLevels::now().verbose_level().map_or(LevelFilter::OFF, Into::into)))
    }

    // Filters may name spans.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, Registry>) {
        self.filter.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, Registry>) {
        self.filter.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, Registry>) {
        self.filter.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, Registry>) {
        self.filter.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, Registry>) {
        self.filter.on_close(id, context);
    }
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
