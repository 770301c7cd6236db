//! What a guest says: stdout, stderr and wasi:logging, into the server's log, up to a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::error::one_line;

/// One request's share of the log.
#[derive(Clone)]
pub(super) struct Output(Arc<Inner>);

struct Inner {
    model: Arc<str>,
    left: AtomicUsize,
}

impl Output {
    pub(super) fn new(model: Arc<str>, limit: usize) -> Self {
        Self(Arc::new(Inner { model, left: AtomicUsize::new(limit) }))
    }

    /// Logs a line of wasi:logging; its context counts like its message.
    pub(super) fn log(&self, level: &str, context: &[u8], message: &[u8]) {
        // One byte over, so that `write` sees that something is cut.
        let most = self.0.left.load(Ordering::Relaxed) + 1;
        let cut = |text: &[u8]| text[..text.len().min(most)].to_vec();
        match context {
            b"" => self.write(level, message),
            _ => self.write(level, &[cut(context), b": ".to_vec(), cut(message)].concat()),
        }
    }

    /// Logs `text`, or what of it the limit leaves; control characters are escaped, so that a
    /// guest cannot forge lines.
    pub(super) fn write(&self, stream: &str, text: &[u8]) {
        let left = self.0.left.load(Ordering::Relaxed);
        if left == 0 {
            return;
        }
        let kept = &text[..text.len().min(left)];
        self.0.left.store(left - kept.len(), Ordering::Relaxed);
        let model = &*self.0.model;
        for line in String::from_utf8_lossy(kept).lines() {
            let line = one_line(line);
            tracing::info!(target: "wisp::guest", model, stream, "{line}");
        }
        if kept.len() < text.len() {
            tracing::warn!(target: "wisp::guest", model, stream, "the guest's output is cut here, it has reached its limit");
        }
    }
}

/// A guest's stdout or stderr.
pub(super) struct Stream(pub(super) Output, pub(super) &'static str);

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for it, and that is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Stream(self.0.clone(), self.1))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(self.1, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}
