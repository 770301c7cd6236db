//! The one table from errors to HTTP and gRPC, and the protocol's error body.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::error::{Error, one_line};

/// The error's kind, for clients that act on more than the status.
const KIND: HeaderName = HeaderName::from_static(KIND_NAME);
const KIND_NAME: &str = "wisp-error";

/// Longer texts are cut.
const MAX_TEXT_BYTES: usize = 8 << 10;

/// Over gRPC a text is a header, percent-encoded to three times its length, and clients take
/// 8 KiB of headers.
const MAX_STATUS_BYTES: usize = 2 << 10;

/// An error on its way out.
pub(super) struct Failed(pub(super) Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// HTTP's word and gRPC's, side by side.
fn codes(error: &Error) -> (StatusCode, Code) {
    match error {
        Error::InvalidInput(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        Error::Unauthorized(_) => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
        Error::Forbidden(_) => (StatusCode::FORBIDDEN, Code::PermissionDenied),
        Error::UnknownModel(_) | Error::UnknownVersion { .. } | Error::UnknownPath(_) => {
            (StatusCode::NOT_FOUND, Code::NotFound)
        }
        Error::WrongMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented),
        Error::BodyLost(_) => (StatusCode::REQUEST_TIMEOUT, Code::Cancelled),
        Error::Conflict(_) => (StatusCode::CONFLICT, Code::FailedPrecondition),
        Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::OutOfRange),
        Error::BundleRefused(_) => (StatusCode::UNPROCESSABLE_ENTITY, Code::FailedPrecondition),
        Error::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, Code::Unimplemented),
        Error::NotReady { .. } => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
        Error::Overloaded { .. } | Error::NoRoom(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted)
        }
        Error::Registry(_) => (StatusCode::BAD_GATEWAY, Code::Unavailable),
        Error::Deadline { .. } => (StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded),
        Error::Storage(_) => (StatusCode::INSUFFICIENT_STORAGE, Code::Internal),
        Error::GuestTrap { .. }
        | Error::GuestMemory { .. }
        | Error::CpuLimit { .. }
        | Error::GuestFailed { .. }
        | Error::Compute { .. }
        | Error::GraphMemory { .. }
        | Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
    }
}

/// An error over gRPC.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let ((http, code), kind) = (codes(&error), error.kind());
        if http.is_server_error() {
            tracing::warn!(kind, %code, "{}", one_line(&error.to_string()));
        }
        let mut status = Status::new(code, cut(error.to_string(), MAX_STATUS_BYTES));
        status.metadata_mut().insert(KIND_NAME, MetadataValue::from_static(kind));
        status
    }
}

/// Texts repeat what the client sent.
pub(super) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        respond(&self.0, |_, text| json!({ "error": text }))
    }
}

/// An error over HTTP; `body` puts its text in the form that the client reads.
pub(super) fn respond(error: &Error, body: impl FnOnce(StatusCode, &str) -> Value) -> Response {
    let ((status, _), kind) = (codes(error), error.kind());
    // The client's own mistakes are the client's to see; the log is for the operator's.
    if status.is_server_error() {
        tracing::warn!(kind, status = status.as_u16(), "{}", one_line(&error.to_string()));
    }
    // Not axum's Json: its error path answers in plain text, and the type must be exact.
    let text = cut(error.to_string(), MAX_TEXT_BYTES);
    let body = body(status, &text).to_string();
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    response.headers_mut().insert(KIND, HeaderValue::from_static(kind));
    if matches!(error, Error::Unauthorized(_)) {
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    let retry_after = match error {
        Error::Overloaded { .. } | Error::NoRoom(_) => Some("1"),
        // What is stored and failed to load is tried again then.
        Error::NotReady { .. } => Some("5"),
        _ => None,
    };
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}
