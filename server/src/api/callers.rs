//! Who asks: where the operator has given out API keys, nothing but health is answered without
//! one, and what a request uses is counted for its key.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::Status;

use super::{Api, failed};
use crate::api_keys::ApiKeys;
use crate::error::Error;

/// The API key that a request came with, by its name; without one where none is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Caller(Option<Arc<str>>);

impl Caller {
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    pub(super) fn key(&self) -> Option<Arc<str>> {
        self.0.clone()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// What balancers ask, who have no key.
const OPEN: [&str; 6] = [
    "/v2/health/live",
    "/v2/health/ready",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// Lets through who has a key.
pub(super) async fn identify(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let Some(keys) = api.keys() else { return next.run(request).await };
    let path = request.uri().path();
    if OPEN.contains(&path) {
        return next.run(request).await;
    }
    match find(keys, request.headers()) {
        Some(name) => {
            request.extensions_mut().insert(Caller(Some(name)));
            next.run(request).await
        }
        None => {
            let error = Error::Unauthorized(
                "expected an API key of this server in the header `Authorization: Bearer …`"
                    .to_owned(),
            );
            match is_grpc(request.headers()) {
                true => Status::from(error).into_http(),
                false => failed(path, error).into_response(),
            }
        }
    }
}

fn find(keys: &ApiKeys, headers: &HeaderMap) -> Option<Arc<str>> {
    let given = headers.get(header::AUTHORIZATION)?.as_bytes();
    keys.name(given.strip_prefix(b"Bearer ")?)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE);
    media_type.is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/grpc"))
}
