//! Reads a request's body, within its bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ApiOptions, compression};
use crate::error::Error;

/// Trusted for one allocation ahead of the bytes: a client that lies gains no more than this.
const ALLOCATE_AHEAD: usize = 1 << 20;

/// Bodies up to this are not counted.
const SMALL_BYTES: usize = 64 << 10;

/// Of a body that nobody wants, what is read and thrown away at most.
const DISCARD: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// A whole body, and its share of the room for all bodies, given back when it goes.
pub(super) struct Collected<'a> {
    pub(super) bytes: Vec<u8>,
    pub(super) _room: Option<SemaphorePermit<'a>>,
}

/// The room for all bodies that are held at a time, in bytes: beside them their tensors are held,
/// and no limit on one body bounds how many come at once.
pub(super) struct Room(Semaphore);

impl Room {
    /// Room for eight bodies of the limit's size.
    pub(super) fn new(options: ApiOptions) -> Self {
        Self::with_bytes(options.body_limit * 8)
    }

    pub(super) fn with_bytes(bytes: usize) -> Self {
        Self(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)))
    }

    /// Counts in what came another way than by [`read`].
    ///
    /// # Errors
    /// There is no room for now.
    pub(super) fn hold(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Error> {
        let permits = u32::try_from(bytes).ok();
        let permit = permits.and_then(|permits| self.0.try_acquire_many(permits).ok());
        permit.ok_or_else(no_room)
    }

    /// Counts in what is missing to a body of `bytes` so far, of which `held` are; how many it
    /// were. Whoever holds them gives them back.
    ///
    /// # Errors
    /// There is no room for now.
    pub(super) fn hold_up_to(&self, bytes: usize, held: usize) -> Result<usize, Error> {
        if bytes <= SMALL_BYTES {
            return Ok(0);
        }
        self.hold(bytes - held)?.forget();
        Ok(bytes - held)
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.add_permits(bytes);
    }

    /// Adds to what is `held`.
    ///
    /// # Errors
    /// There is no room for now.
    pub(super) fn hold_more<'a>(
        &'a self,
        bytes: usize,
        held: &mut Option<SemaphorePermit<'a>>,
    ) -> Result<(), Error> {
        let permit = self.hold(bytes)?;
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }
}

fn no_room() -> Error {
    Error::NoRoom("too many large bodies are held at a time".to_owned())
}

/// Collects the whole body, and decompresses it.
///
/// # Errors
/// It is over the limit, takes too long, breaks off or is damaged; or there is no room for now.
pub(super) async fn read<'a>(
    headers: &HeaderMap,
    mut body: Body,
    options: ApiOptions,
    room: &'a Room,
) -> Result<Collected<'a>, Error> {
    let coding = match compression::of_body(headers) {
        Ok(coding) => coding,
        Err(error) => {
            discard(headers, body).await;
            return Err(error);
        }
    };
    let announced = announced(headers);
    if announced > options.body_limit {
        discard(headers, body).await;
        return Err(Error::TooLarge { limit: options.body_limit });
    }
    let collect = collect(&mut body, announced.min(ALLOCATE_AHEAD), options.body_limit, room);
    let late = |_| Error::BodyLost(format!("it took longer than {:?}", options.body_timeout));
    let collected = tokio::time::timeout(options.body_timeout, collect).await.map_err(late)?;
    if matches!(collected, Err(Error::TooLarge { .. } | Error::NoRoom(_))) {
        drain(&mut body).await;
    }
    let Collected { bytes, mut _room } = collected?;
    let Some(coding) = coding else { return Ok(Collected { bytes, _room }) };
    // How much it is, only its end will tell; some thousand times as much at most.
    let bytes = aside(bytes.len().saturating_mul(1000), || {
        compression::decompress(coding, &bytes, options.body_limit, room, &mut _room)
    })?;
    Ok(Collected { bytes, _room })
}

/// What takes longer to read or write than to hand a thread's other connections over, bytes.
const LARGE: usize = 1 << 20;

/// Runs `work` on `bytes` where it holds up no other connection: tens of MB of JSON take a second.
pub(super) fn aside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    match bytes {
        LARGE.. => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Reads on for a while and throws away what comes, for a request that is refused before its
/// body: a client sends before it listens, and an early close would reset its connection before
/// it hears why.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body) {
    // A client that asks first is told before it sends.
    if !headers.contains_key(header::EXPECT) {
        drain(&mut body).await;
    }
}

fn announced(headers: &HeaderMap) -> usize {
    let length = headers.get(header::CONTENT_LENGTH);
    length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

async fn collect<'a>(
    body: &mut Body,
    capacity: usize,
    limit: usize,
    room: &'a Room,
) -> Result<Collected<'a>, Error> {
    let mut bytes = Vec::with_capacity(capacity);
    let mut held: Option<SemaphorePermit<'a>> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::BodyLost(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(Error::TooLarge { limit });
        }
        // A small one always fits, however slow large ones hold all the room.
        let uncounted = if held.is_none() { bytes.len() } else { 0 };
        if bytes.len() + data.len() > SMALL_BYTES {
            room.hold_more(uncounted + data.len(), &mut held)?;
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Collected { bytes, _room: held })
}

pub(super) async fn drain(body: &mut Body) {
    let read = async {
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, |data| data.len());
            if discarded > DISCARD {
                return;
            }
        }
    };
    // Whether the client listens in the end is its own affair.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
}

/// Of requests that carry no tensors and no bundle.
const MAX_SMALL_BYTES: usize = 64 << 10;
const SMALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a body that says little; `None` where there is none.
///
/// # Errors
/// It is too large, takes too long, or is not what is expected.
pub(super) async fn read_small_json<T: DeserializeOwned>(
    mut body: Body,
) -> Result<Option<T>, Error> {
    let limited = Limited::new(&mut body, MAX_SMALL_BYTES);
    let body = match tokio::time::timeout(SMALL_TIMEOUT, limited.collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            drain(&mut body).await;
            return Err(Error::TooLarge { limit: MAX_SMALL_BYTES });
        }
        Ok(Err(error)) => return Err(Error::BodyLost(error.to_string())),
        Err(_) => return Err(Error::BodyLost(format!("it took longer than {SMALL_TIMEOUT:?}"))),
    };
    if body.is_empty() {
        return Ok(None);
    }
    // serde would take a list for an object's fields.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Error::InvalidInput("the body is a list, expected an object".to_owned()));
    }
    let read = serde_json::from_slice(&body);
    read.map(Some)
        .map_err(|error| Error::InvalidInput(format!("the body is not what is expected: {error}")))
}
