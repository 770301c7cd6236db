//! What HTTP/2 clients have not taken of their answers. A client that opens no window for an answer
//! blocks no write to its connection: its answer waits in memory, beside others that go on.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// Of one connection: since when each part of an answer waits for the client.
#[derive(Debug, Clone, Default)]
pub(super) struct Untaken(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Untaken {
    /// An answer whose parts are watched until they are sent.
    pub(super) fn watch(&self, body: Body) -> Watched {
        Watched { body, untaken: self.clone(), turn: Some(self.ticket()) }
    }

    /// Completes once something has waited for longer than `patience`.
    pub(super) async fn too_long(&self, patience: Duration) {
        loop {
            // Tickets are numbered in the order of their times.
            let oldest = self.lock().since.first_key_value().map(|(_, since)| *since);
            let left = oldest.map_or(patience, |since| patience.saturating_sub(since.elapsed()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    fn ticket(&self) -> Ticket {
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.since.insert(number, Instant::now());
        Ticket { untaken: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that waits for the client.
#[derive(Debug)]
struct Ticket {
    untaken: Untaken,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.untaken.lock().since.remove(&self.number);
    }
}

/// Bytes that the connection holds until they are sent.
struct Part {
    bytes: Bytes,
    _ticket: Ticket,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body of an answer. It is asked for more only when the client has room for more.
pub(super) struct Watched {
    body: Body,
    untaken: Untaken,
    /// While the next move is the client's.
    turn: Option<Ticket>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.turn = None;
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        self.turn = Some(self.untaken.ticket());
        let part = |bytes| Bytes::from_owner(Part { bytes, _ticket: self.untaken.ticket() });
        Poll::Ready(Some(Ok(frame.map_data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
