//! Reads a request's body, within its bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::ApiOptions;
use crate::error::Error;

/// Trusted for one allocation ahead of the bytes: a client that lies gains no more than this.
const ALLOCATE_AHEAD: usize = 1 << 20;

/// What is still read of a body that is too large, so that the client, which sends before it
/// listens, comes to hear why: an early close would reset its connection.
const DISCARD: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Collects the whole body.
///
/// # Errors
/// It is over the limit, takes too long, or breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    options: ApiOptions,
) -> Result<Vec<u8>, Error> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    let read = async {
        if announced > options.body_limit {
            return Err(Error::TooLarge { limit: options.body_limit });
        }
        collect(&mut body, announced.min(ALLOCATE_AHEAD), options.body_limit).await
    };
    let late = |_| Error::BodyLost(format!("it took longer than {:?}", options.body_timeout));
    let read = tokio::time::timeout(options.body_timeout, read).await.map_err(late)?;
    // A client that asks first is told before it sends.
    if matches!(read, Err(Error::TooLarge { .. })) && !headers.contains_key(header::EXPECT) {
        // Whether it listens in the end is its own affair.
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard(&mut body)).await;
    }
    read
}

async fn collect(body: &mut Body, capacity: usize, limit: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(capacity);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::BodyLost(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(Error::TooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn discard(body: &mut Body) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, |data| data.len());
        if discarded > DISCARD {
            return;
        }
    }
}
