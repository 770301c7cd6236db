//! Unary gRPC calls, down to their frames: a real client's library sends nothing that is wrong.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tokio::runtime::{self, Runtime};
use tonic::{Code, Status};

use super::Server;

/// Where the generated services look for theirs, which is the server's own.
mod codec {
    pub use tonic_prost::ProstCodec as CheckedCodec;
}

/// What the server's build made of its inference.proto.
#[expect(clippy::allow_attributes, clippy::enum_variant_names, reason = "generated")]
pub mod proto {
    tonic::include_proto!("inference");
}

/// A connection to a server.
pub struct Grpc {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    address: String,
}

impl Grpc {
    pub fn connect(server: &Server) -> Self {
        Self::connect_to(server.address())
    }

    pub fn connect_to(address: &str) -> Self {
        // With a thread of its own: a server that stops asks idle connections to close.
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let address = address.to_owned();
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(&address).await.expect("it listens");
            let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (sender, connection) = connected.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender, address }
    }

    /// Calls a method of the inference service.
    pub fn call<R: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        self.call_with(method, &[], request)
    }

    /// As [`Grpc::call`], with metadata.
    pub fn call_with<R: Message + Default>(
        &self,
        method: &str,
        metadata: &[(&str, &str)],
        request: &impl Message,
    ) -> Result<R, Status> {
        let answer = self.send(method, metadata, frame(0, &request.encode_to_vec()))?;
        Ok(R::decode(&answer[..]).expect("the method's own message"))
    }

    /// Sends a body as it is; the answer is the bytes of its one message.
    pub fn send(
        &self,
        method: &str,
        metadata: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Vec<u8>, Status> {
        let url = format!("http://{}/inference.GRPCInferenceService/{method}", self.address);
        let request =
            Request::post(url).header("content-type", "application/grpc").header("te", "trailers");
        let request =
            metadata.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        let mut sender = self.sender.clone();
        let answered = async {
            let response = sender.send_request(request).await.expect("the server answers");
            let (head, body) = response.into_parts();
            (head, body.collect().await.expect("the answer is whole"))
        };
        let answered = async { tokio::time::timeout(Duration::from_secs(60), answered).await };
        let (head, body) = self.runtime.block_on(answered).expect("the server answers in time");

        assert_eq!(head.status, 200, "{head:?}");
        // Where there is no message the answer's headers are its trailers.
        let status = body.trailers().and_then(Status::from_header_map);
        let status = status.or_else(|| Status::from_header_map(&head.headers)).expect("a status");
        match status.code() {
            Code::Ok => Ok(unframe(&body.to_bytes())),
            _ => Err(status),
        }
    }
}

/// A message as it stands on the wire; `flag` is 1 where it is compressed.
pub fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message of less than 4 GiB");
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

fn unframe(body: &[u8]) -> Vec<u8> {
    let (head, message) = body.split_first_chunk::<5>().expect("a message");
    assert_eq!(frame(0, message)[..5], *head, "one message, that is not compressed");
    message.to_vec()
}

/// The server's own word for an error, beside its code.
pub fn kind(status: &Status) -> &str {
    let kind = status.metadata().get("wisp-error").and_then(|kind| kind.to_str().ok());
    kind.unwrap_or_default()
}
