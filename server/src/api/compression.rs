//! Compressed bodies, both ways: gzip and deflate, as <https://www.rfc-editor.org/rfc/rfc9110#name-content-codings> has them.
//! Bodies are whole here; what may stand in them is nobody's business of this file.

use std::io::{Read, Write};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use tokio::sync::SemaphorePermit;

use super::body::Room;
use crate::error::Error;

/// Shorter answers cost more to compress than to send.
const WORTH_BYTES: usize = 1 << 10;

/// Decompressed at a time, between looks at the limits.
const STEP_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// zlib's format; what some clients send bare is read as well.
    Deflate,
}

impl Coding {
    fn parse(name: &[u8]) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("deflate") => Some(Self::Deflate),
            () => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

/// How a request's body is compressed; `None` where it is not.
///
/// # Errors
/// In a way that is not known here, or in several.
pub(super) fn of_body(headers: &HeaderMap) -> Result<Option<Coding>, Error> {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let Some(coding) = codings.next() else { return Ok(None) };
    let coding = coding.trim_ascii();
    if codings.next().is_none() {
        if coding.eq_ignore_ascii_case(b"identity") || coding.is_empty() {
            return Ok(None);
        }
        if let Some(coding) = Coding::parse(coding) {
            return Ok(Some(coding));
        }
    }
    let came = String::from_utf8_lossy(coding);
    Err(Error::InvalidInput(format!(
        "header content-encoding: expected gzip, deflate or identity, once, got `{came}`"
    )))
}

/// Decompresses a whole body, which is held in `room` as it grows.
///
/// # Errors
/// It is damaged, larger than `limit` bytes, or there is no room for now.
pub(super) fn decompress<'a>(
    coding: Coding,
    body: &[u8],
    limit: usize,
    room: &'a Room,
    held: &mut Option<SemaphorePermit<'a>>,
) -> Result<Vec<u8>, Error> {
    let mut rest = body;
    // The first two bytes of zlib's format are a multiple of 31, with 8 for its method.
    let is_zlib = matches!(body, [first, second, ..] if first & 15 == 8 && u16::from_be_bytes([*first, *second]) % 31 == 0);
    let read = match coding {
        Coding::Gzip => read_all(coding, MultiGzDecoder::new(&mut rest), limit, room, held),
        Coding::Deflate if is_zlib => {
            read_all(coding, ZlibDecoder::new(&mut rest), limit, room, held)
        }
        Coding::Deflate => read_all(coding, DeflateDecoder::new(&mut rest), limit, room, held),
    }?;
    match rest {
        [] => Ok(read),
        _ => Err(damaged(coding, &format!("{} bytes follow its end", rest.len()))),
    }
}

fn damaged(coding: Coding, reason: &str) -> Error {
    Error::InvalidInput(format!("the body is damaged {}: {reason}", coding.name()))
}

fn read_all<'a>(
    coding: Coding,
    mut decoder: impl Read,
    limit: usize,
    room: &'a Room,
    held: &mut Option<SemaphorePermit<'a>>,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    loop {
        // One byte more than the limit tells a body that is too large from one that fits.
        let step = STEP_BYTES.min(limit + 1 - bytes.len());
        let read = decoder.by_ref().take(step as u64).read_to_end(&mut bytes);
        let read = read.map_err(|error| damaged(coding, &error.to_string()))?;
        if bytes.len() > limit {
            return Err(Error::TooLarge { limit });
        }
        if read == 0 {
            return Ok(bytes);
        }
        room.hold_more(read, held)?;
    }
}

/// The coding that a client prefers for the answer; `None` for none.
pub(super) fn accepted(headers: &HeaderMap) -> Option<Coding> {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let entries = values.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let (mut gzip, mut deflate, mut plain, mut others) = (None, None, None, None);
    for entry in entries {
        let mut parts = entry.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let Some(quality) = quality(parts) else { continue };
        let known = match Coding::parse(name) {
            Some(Coding::Gzip) => &mut gzip,
            Some(Coding::Deflate) => &mut deflate,
            None if name.eq_ignore_ascii_case(b"identity") => &mut plain,
            None if name == b"*" => &mut others,
            None => continue,
        };
        *known = Some(quality);
    }
    // The star stands for those that are not named.
    let [gzip, deflate] = [gzip, deflate].map(|own| own.or(others).unwrap_or(0.0));
    let (quality, coding) = match deflate > gzip {
        true => (deflate, Coding::Deflate),
        false => (gzip, Coding::Gzip),
    };
    (quality > 0.0 && plain.is_none_or(|plain| quality >= plain)).then_some(coding)
}

/// `q=0.5`, 1 where there is none; `None` where it cannot be read.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a [u8]>) -> Option<f32> {
    let value = parameters.find_map(|parameter| {
        parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))
    });
    let Some(value) = value else { return Some(1.0) };
    let quality: f32 = str::from_utf8(value).ok()?.parse().ok()?;
    (0.0..=1.0).contains(&quality).then_some(quality)
}

/// An answer of status 200, compressed where the client takes that and it is worth it.
pub(super) fn answer(
    accepted: Option<Coding>,
    media_type: &'static str,
    body: Vec<u8>,
) -> Response {
    let plain = |body: Vec<u8>| {
        (StatusCode::OK, [(header::CONTENT_TYPE, media_type)], body).into_response()
    };
    let Some(coding) = accepted.filter(|_| body.len() >= WORTH_BYTES) else { return plain(body) };
    // Into memory, which does not fail; but what is random does not shrink.
    let compressed =
        compress(coding, &body).ok().filter(|compressed| compressed.len() < body.len());
    let Some(compressed) = compressed else { return plain(body) };
    let mut answer = plain(compressed);
    let headers: [(HeaderName, &str); 2] =
        [(header::CONTENT_ENCODING, coding.name()), (header::VARY, "accept-encoding")];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Of zlib-rs, 1 makes floats larger than they were, and 3 and more take longer for a few
/// percent: JSON of 150,528 floats, 1.77 MB, comes to 1.15, 0.77 and 0.75 MB in 22, 34 and 39 ms.
const LEVEL: flate2::Compression = flate2::Compression::new(2);

fn compress(coding: Coding, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let (into, level) = (Vec::with_capacity(body.len() / 4), LEVEL);
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(into, level);
            encoder.write_all(body)?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(into, level);
            encoder.write_all(body)?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &'static str) -> Option<Coding> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        accepted(&headers)
    }

    #[test]
    fn the_client_chooses_the_coding() {
        assert_eq!(accepts("gzip, deflate, br"), Some(Coding::Gzip));
        assert_eq!(accepts("deflate"), Some(Coding::Deflate));
        assert_eq!(accepts("gzip;q=0, *"), Some(Coding::Deflate));
        assert_eq!(accepts("deflate;q=0.5, gzip;q=0.8"), Some(Coding::Gzip));
        assert_eq!(accepts("*"), Some(Coding::Gzip));
        for none in
            ["", "br", "gzip;q=0", "identity, gzip;q=0.5", "gzip;q=2", "gzip;q=x", "identity"]
        {
            assert_eq!(accepts(none), None, "{none}");
        }
        assert_eq!(accepted(&HeaderMap::new()), None);
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let room = Room::with_bytes(16 << 20);
        let body: Vec<u8> = (0..100_000u32).flat_map(|value| (value % 251).to_le_bytes()).collect();
        for coding in [Coding::Gzip, Coding::Deflate] {
            let compressed = compress(coding, &body).expect("memory");
            let mut held = None;
            let back = decompress(coding, &compressed, body.len(), &room, &mut held);
            assert_eq!(back.expect("whole"), body);
            let mut refuse = |bytes: &[u8], limit| {
                decompress(coding, bytes, limit, &room, &mut held).expect_err("refused").kind()
            };
            assert_eq!(refuse(&compressed, body.len() - 1), "too-large");
            assert_eq!(refuse(&compressed[..compressed.len() - 1], body.len()), "invalid-input");
            assert_eq!(refuse(&[&compressed[..], b"more"].concat(), body.len()), "invalid-input");
            assert_eq!(refuse(b"", body.len()), "invalid-input");
        }
        let small = Room::with_bytes(1 << 10);
        let compressed = compress(Coding::Gzip, &body).expect("memory");
        let refused = decompress(Coding::Gzip, &compressed, body.len(), &small, &mut None);
        assert_eq!(refused.expect_err("no room").kind(), "no-room");
    }
}
