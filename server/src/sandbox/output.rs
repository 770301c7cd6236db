//! What a guest says: stdout, stderr and wasi:logging, into the server's log, up to a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
    /// Whether something was left out, which is said once.
    is_cut: AtomicBool,
}

/// What a line takes beside its text: the time, the model's name. Or lines without one would be
/// megabytes.
const LINE_BYTES: usize = 64;

impl Output {
    pub(super) fn new(model: Arc<str>, limit: usize) -> Self {
        let (left, is_cut) = (AtomicUsize::new(limit), AtomicBool::new(false));
        Self(Arc::new(Inner { model, left, is_cut }))
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
        let mut left = self.0.left.load(Ordering::Relaxed);
        let kept = &text[..text.len().min(left)];
        let mut is_whole = kept.len() == text.len();
        let model = &*self.0.model;
        for line in String::from_utf8_lossy(kept).lines() {
            if left == 0 {
                is_whole = false;
                break;
            }
            left = left.saturating_sub(line.len() + LINE_BYTES);
            let line = one_line(line);
            tracing::info!(target: "wisp::guest", model, stream, "{line}");
        }
        self.0.left.store(left, Ordering::Relaxed);
        if !is_whole && !self.0.is_cut.swap(true, Ordering::Relaxed) {
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
