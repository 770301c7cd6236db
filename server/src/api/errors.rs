//! The one table from errors to HTTP, and the protocol's error body.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{Error, one_line};

/// The error's kind, for clients that act on more than the status.
const KIND: HeaderName = HeaderName::from_static("wisp-error");

/// Longer texts are cut.
const MAX_TEXT_BYTES: usize = 8 << 10;

/// An error on its way out.
pub(super) struct Failed(pub(super) Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::InvalidInput(_) => StatusCode::BAD_REQUEST,
        Error::UnknownModel(_) | Error::UnknownVersion { .. } | Error::UnknownPath(_) => {
            StatusCode::NOT_FOUND
        }
        Error::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
        Error::BodyLost(_) => StatusCode::REQUEST_TIMEOUT,
        Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
        Error::NotReady { .. } | Error::Overloaded { .. } | Error::NoRoom(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Error::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
        Error::BundleRefused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Conflict(_) => StatusCode::CONFLICT,
        Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        Error::Storage(_) => StatusCode::INSUFFICIENT_STORAGE,
        Error::Registry(_) => StatusCode::BAD_GATEWAY,
        Error::GuestTrap { .. }
        | Error::GuestMemory { .. }
        | Error::GuestFailed { .. }
        | Error::Compute { .. }
        | Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let (status, kind) = (status(&error), error.kind());
        // The client's own mistakes are the client's to see; the log is for the operator's.
        if status.is_server_error() {
            tracing::warn!(kind, status = status.as_u16(), "{}", one_line(&error.to_string()));
        }
        // Not axum's Json: its error path answers in plain text, and the type must be exact.
        let mut text = error.to_string();
        if text.len() > MAX_TEXT_BYTES {
            // It repeats what the client sent.
            text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
            text.push('…');
        }
        let body = json!({ "error": text }).to_string();
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        response.headers_mut().insert(KIND, HeaderValue::from_static(kind));
        if matches!(error, Error::Unauthorized(_)) {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if matches!(error, Error::Overloaded { .. } | Error::NoRoom(_)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
