//! Accepts connections and stops gracefully. `axum::serve` would do, but sets no TCP_NODELAY
//! (a reply in two writes then waits 40 ms for the client's delayed ACK) and no time limit on
//! a client that sends its headers one byte a minute.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::patient::Patient;
use super::untaken::{Untaken, Watched};
use crate::overhead::{self, Overhead};

/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 128;

/// What an HTTP/2 client may send ahead of its being read: a picture as a tensor.
const WINDOW_BYTES: u32 = 1 << 20;

/// How often a silent HTTP/2 client is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How long clients are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To take an answer.
    pub answer: Duration,
    /// For requests in flight once the server is to stop.
    pub drain: Duration,
}

/// Serves until `shutdown` completes, then lets the requests in flight finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    patience: Patience,
) {
    let mut plain = http1::Builder::new();
    plain.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: it passes when connections close.
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY cannot be set: {error}");
        }
        let (plain, service, watcher) = (plain.clone(), service.clone(), graceful.watcher());
        let overhead = Arc::new(Overhead::default());
        tokio::spawn(overhead.clone().metered(async move {
            let is_http2 = is_http2(&stream).await;
            let stream = TokioIo::new(Patient::new(stream, patience.answer));
            let ended = match is_http2 {
                Some(true) => {
                    let untaken = Untaken::default();
                    let service = watched(service, untaken.clone());
                    let connection = multiplexed(overhead).serve_connection(stream, service);
                    tokio::select! {
                        ended = watcher.watch(connection) => ended,
                        () = untaken.too_long(patience.answer) => {
                            let patience = patience.answer;
                            tracing::debug!("a client did not take its answer within {patience:?}");
                            return;
                        }
                    }
                }
                Some(false) => {
                    let connection = plain.serve_connection(stream, counted(service));
                    watcher.watch(connection).await
                }
                // Gone, or silent for too long.
                None => return,
            };
            if let Err(error) = ended {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                tracing::debug!("a connection broke: {error}{cause}");
            }
        }));
    }
    drop(listener);
    let drain = patience.drain;
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight after {drain:?}, they are dropped");
    }
}

fn multiplexed(overhead: Arc<Overhead>) -> http2::Builder<Streams> {
    let mut multiplexed = http2::Builder::new(Streams(overhead));
    multiplexed
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .keep_alive_timeout(HEAD_TIMEOUT);
    multiplexed
}

/// Runs an HTTP/2 connection's streams, each a task, whose overhead is the connection's.
#[derive(Clone)]
struct Streams(Arc<Overhead>);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(self.0.clone().metered(stream));
    }
}

/// The same, but that the overhead of each request is told from the one's before.
fn counted(
    service: TowerToHyperService<Router>,
) -> impl Service<
    hyper::Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> {
    service_fn(move |request| {
        overhead::begin();
        service.call(request)
    })
}

/// The same, with answers that are watched until the client has taken them.
fn watched(
    service: TowerToHyperService<Router>,
    untaken: Untaken,
) -> impl Service<
    hyper::Request<Incoming>,
    Response = hyper::Response<Watched>,
    Error = Infallible,
    Future: Send,
> {
    service_fn(move |request| {
        overhead::begin();
        let (answer, untaken) = (service.call(request), untaken.clone());
        async move { answer.await.map(|answer| answer.map(|body| untaken.watch(body))) }
    })
}

/// Whether a connection opens as HTTP/2 does, which is what gRPC speaks; looked at before it is
/// read, as the two take another reader each.
async fn is_http2(stream: &TcpStream) -> Option<bool> {
    const PREFACE: [u8; 4] = *b"PRI ";
    let look = async {
        let mut first = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut first).await {
                Ok(0) | Err(_) => return None,
                Ok(count) if first[..count] != PREFACE[..count] => return Some(false),
                Ok(count) if count == PREFACE.len() => return Some(true),
                // A part of it, which stays readable: what follows is on its way.
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    tokio::time::timeout(HEAD_TIMEOUT, look).await.ok()?
}
