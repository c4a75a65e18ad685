//! The metadata of each call: the token, the namespace, the deadline; over TCP and over a
//! Unix socket. With TLS: see `tls`.

use tonic::transport::Server;
use wfe_persistence_client::GrpcPersistenceProvider;

use crate::{common, stub};

#[tokio::test]
async fn the_token_goes_with_every_call() {
    let (port, seen) = stub::on_tcp(Server::builder()).await;
    let provider = GrpcPersistenceProvider::builder(format!("http://127.0.0.1:{port}"))
        .bearer_token("s3cret-token")
        .namespace("orders")
        .connect()
        .await
        .unwrap();
    for calls in 1..4 {
        assert_eq!(seen.count(), calls);
        assert_eq!(seen.last("authorization"), ["Bearer s3cret-token"]);
        assert_eq!(seen.last("wfe-namespace"), ["orders"]);
        assert_eq!(seen.last("grpc-timeout").len(), 1);
        provider.store_info().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_not_given_is_not_sent() {
    let (port, seen) = stub::on_tcp(Server::builder()).await;
    let provider = GrpcPersistenceProvider::new(format!("127.0.0.1:{port}")).await;
    assert_eq!(
        provider.unwrap().store_info().await.unwrap().server_version,
        "stub"
    );
    assert!(seen.last("authorization").is_empty());
    assert!(seen.last("wfe-namespace").is_empty());
}

#[tokio::test]
async fn over_a_unix_socket_too() {
    let path = common::temporary_directory().join("socket");
    let seen = stub::on_socket(&path);
    GrpcPersistenceProvider::builder(format!("unix:{}", path.display()))
        .bearer_token("t")
        .connect()
        .await
        .unwrap();
    assert_eq!(seen.last("authorization"), ["Bearer t"]);
}

#[tokio::test]
async fn a_file_and_a_function_are_asked_before_every_call() {
    let (port, seen) = stub::on_tcp(Server::builder()).await;
    let builder = GrpcPersistenceProvider::builder(format!("127.0.0.1:{port}"));
    let path = common::temporary_directory().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let provider = builder.clone().token_file(&path).connect().await.unwrap();
    assert_eq!(seen.last("authorization"), ["Bearer first"]);
    std::fs::write(&path, "second\n").unwrap();
    provider.store_info().await.unwrap();
    assert_eq!(seen.last("authorization"), ["Bearer second"]);

    let calls = std::sync::atomic::AtomicU32::new(0);
    let next = move || {
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(format!("t{call}"))
    };
    let provider = builder.token_function(next).connect().await.unwrap();
    assert_eq!(seen.last("authorization"), ["Bearer t0"]);
    provider.store_info().await.unwrap();
    assert_eq!(seen.last("authorization"), ["Bearer t1"]);
}
