//! Reads a request's body, within its bounds of size and time.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::ApiOptions;
use crate::error::Error;

/// Trusted for one allocation ahead of the bytes: a client that lies gains no more than this.
const ALLOCATE_AHEAD: usize = 1 << 20;

/// Collects the whole body.
///
/// # Errors
/// It is over the limit, takes too long, or breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    options: ApiOptions,
) -> Result<Vec<u8>, Error> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > options.body_limit) {
        return Err(Error::TooLarge { limit: options.body_limit });
    }
    let collect = collect(body, announced.unwrap_or(0).min(ALLOCATE_AHEAD), options.body_limit);
    let late = |_| Error::BodyLost(format!("it took longer than {:?}", options.body_timeout));
    tokio::time::timeout(options.body_timeout, collect).await.map_err(late)?
}

async fn collect(mut body: Body, capacity: usize, limit: usize) -> Result<Vec<u8>, Error> {
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
