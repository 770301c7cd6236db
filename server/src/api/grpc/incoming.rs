//! A unary request's body on its way in: it has its time, and is counted in the room for bodies,
//! as over HTTP, before it is whole. A stream's has neither: it may last, and say little.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use hyper::body::Frame;
use tokio::time::Sleep;
use tonic::Status;

use super::super::Api;
use crate::error::Error;

/// Puts the body of a request to the inference service under watch.
pub(super) async fn watch(State(api): State<Api>, request: Request) -> Request {
    let method = request.uri().path().strip_prefix("/inference.GRPCInferenceService/");
    if method.is_none_or(|method| method == "ModelStreamInfer") {
        return request;
    }
    request.map(|body| {
        let ends = Box::pin(tokio::time::sleep(api.options().body_timeout));
        Body::new(Incoming { body, api, ends, received: 0, held: 0 })
    })
}

struct Incoming {
    body: Body,
    api: Api,
    ends: Pin<Box<Sleep>>,
    received: usize,
    /// Of the room, given back when the body goes.
    held: usize,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.ends.as_mut().poll(context).is_ready() {
            let limit = self.api.options().body_timeout;
            let late = Error::BodyLost(format!("it took longer than {limit:?}"));
            return Poll::Ready(Some(Err(Status::from(late).into())));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(frame) => frame?,
        };
        if let Some(data) = frame.data_ref() {
            self.received += data.len();
            let counted = self.api.bodies().hold_up_to(self.received, self.held);
            self.held += counted.map_err(Status::from)?;
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.api.bodies().give_back(self.held);
    }
}
