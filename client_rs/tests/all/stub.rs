//! The tests' own server, which implements `GetStoreInfo` and records the metadata that it
//! receives, which the real one does not report.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::codegen::{http, Body, BoxFuture, Service};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic_prost::ProstCodec;
use wfe_persistence_client::v1::{GetStoreInfoRequest, GetStoreInfoResponse};

/// The metadata of each call, in order.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<MetadataMap>>>);

impl Seen {
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// All values of this key in the last call.
    pub fn last(&self, key: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        let values = all.last().expect("a call was made").get_all(key);
        values
            .iter()
            .map(|value| value.to_str().unwrap().into())
            .collect()
    }
}

/// Serves on a free local port; returns the port.
pub async fn on_tcp(mut server: Server) -> (u16, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Seen::default();
    let stub = Stub(seen.clone());
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        server = server.accept_http1(false);
        server.serve_with_incoming(stub, incoming).await.unwrap();
    });
    (port, seen)
}

/// Serves on a Unix socket.
pub fn on_socket(path: &Path) -> Seen {
    let listener = UnixListener::bind(path).unwrap();
    let seen = Seen::default();
    let stub = Stub(seen.clone());
    tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        let server = Server::builder();
        server.serve_with_incoming(stub, incoming).await.unwrap();
    });
    seen
}

#[derive(Clone)]
struct Stub(Seen);

impl<B> Service<http::Request<B>> for Stub
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() == "/grpc.health.v1.Health/Check" {
            // That it answers is enough.
            let answer = tonic::Status::unimplemented("not here").into_http();
            return Box::pin(std::future::ready(Ok(answer)));
        }
        assert!(request.uri().path().ends_with("/GetStoreInfo"));
        let answer = Answer(self.0.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.unary(answer, request).await)
        })
    }
}

struct Answer(Seen);

impl UnaryService<GetStoreInfoRequest> for Answer {
    type Response = GetStoreInfoResponse;
    type Future = std::future::Ready<Result<tonic::Response<GetStoreInfoResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<GetStoreInfoRequest>) -> Self::Future {
        let (metadata, _, _) = request.into_parts();
        self.0 .0.lock().unwrap().push(metadata);
        std::future::ready(Ok(tonic::Response::new(GetStoreInfoResponse {
            server_version: "stub".into(),
            ..Default::default()
        })))
    }
}
