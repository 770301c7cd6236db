//! What requests have used, for those who made them: with an API key only what was its own.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::Api;
use super::callers::Caller;
use super::reply::json;
use crate::usage::UsageRecord;

#[derive(Serialize)]
pub(super) struct UsageList {
    pub(super) usage: Vec<UsageRecord>,
}

pub(super) async fn usage(State(api): State<Api>, caller: Caller) -> Response {
    let usage = api.inference().usage.records(caller.key().as_deref());
    json(StatusCode::OK, &UsageList { usage })
}
