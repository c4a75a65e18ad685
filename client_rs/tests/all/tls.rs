//! TLS, with certificates created by each test: which servers the client trusts, how it
//! reports those it does not, and the certificate and token that it sends.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::Code;
use wfe_persistence_client::{Builder, Error, GrpcPersistenceProvider};

use crate::channels::{warm, Proxy};
use crate::common;
use crate::stub::{self, Seen};

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for this name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_string()]).unwrap();
        // Without a name of its own it has the authority's, and OpenSSL takes it for its own issuer.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A server whose certificate is for this name. Anybody can call it, or only clients with a
/// certificate of that authority.
async fn serve(authority: &Authority, name: &str, clients: Option<&Authority>) -> (String, Seen) {
    // tonic's server, unlike its client, does not choose between several cryptography
    // providers. A second call has no effect.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = authority.issue(name);
    let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    if let Some(clients) = clients {
        tls = tls.client_ca_root(Certificate::from_pem(clients.0.pem()));
    }
    let (port, seen) = stub::on_tcp(Server::builder().tls_config(tls).unwrap()).await;
    (format!("https://127.0.0.1:{port}"), seen)
}

fn trusting(authority: &Authority, address: &str) -> Builder {
    GrpcPersistenceProvider::builder(address).ca_certificate(authority.0.pem())
}

async fn refused(builder: Builder) -> Error {
    // With retries, which would end only at the deadline.
    let error = builder.connect().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.is_tls(), "{error}");
    assert!(!error.maybe_written());
    error
}

#[tokio::test]
async fn a_server_of_the_right_authority_gets_the_token() {
    let authority = Authority::new();
    let (address, seen) = serve(&authority, "127.0.0.1", None).await;
    let provider = trusting(&authority, &address)
        .bearer_token("s3cret-token")
        .namespace("orders")
        .connect()
        .await
        .unwrap();
    provider.store_info().await.unwrap();
    assert_eq!(seen.count(), 2);
    assert_eq!(seen.last("authorization"), ["Bearer s3cret-token"]);
    assert_eq!(seen.last("wfe-namespace"), ["orders"]);
}

#[tokio::test]
async fn each_of_several_connections_is_encrypted() {
    let authority = Authority::new();
    let (address, seen) = serve(&authority, "127.0.0.1", None).await;
    let target = address.strip_prefix("https://").unwrap();
    let (address, proxy) = Proxy::start(target).await;
    let provider = trusting(&authority, &format!("https://{address}"))
        .bearer_token("s3cret-token")
        .channels(3)
        .connect()
        .await
        .unwrap();
    warm(&provider, || proxy.open() == 3).await;
    for _ in 0..12 {
        provider.store_info().await.unwrap();
        assert_eq!(seen.last("authorization"), ["Bearer s3cret-token"]);
    }
}

#[tokio::test]
async fn a_server_of_another_authority_gets_nothing() {
    let (address, seen) = serve(&Authority::new(), "127.0.0.1", None).await;
    let error = refused(trusting(&Authority::new(), &address).bearer_token("s3cret-token")).await;
    assert!(error.message().contains("invalid peer certificate"));
    assert!(!error.to_string().contains("s3cret-token"));
    assert_eq!(seen.count(), 0);
}

#[tokio::test]
async fn the_name_must_be_right() {
    let authority = Authority::new();
    let (address, seen) = serve(&authority, "store.example", None).await;
    refused(trusting(&authority, &address)).await;
    refused(trusting(&authority, &address).domain("other.example")).await;
    assert_eq!(seen.count(), 0);
    let builder = trusting(&authority, &address).domain("store.example");
    builder.connect().await.unwrap();
}

#[tokio::test]
async fn a_server_may_ask_who_calls() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (address, seen) = serve(&authority, "127.0.0.1", Some(&clients)).await;
    let (certificate, key) = clients.issue("host-1");
    let builder = trusting(&authority, &address).client_identity(certificate, key);
    builder.connect().await.unwrap();
    assert_eq!(seen.count(), 1);

    // The server refuses only after the client's side of the handshake is complete, so the
    // error that the client sees depends on timing; but it is not let in.
    let (certificate, key) = Authority::new().issue("host-1");
    for builder in [
        trusting(&authority, &address),
        trusting(&authority, &address).client_identity(certificate, key),
    ] {
        let error = builder.max_attempts(2).connect().await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
    assert_eq!(seen.count(), 1);
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart() {
    let (port, seen) = stub::on_tcp(Server::builder()).await;
    let authority = Authority::new();
    let builder = trusting(&authority, &format!("https://127.0.0.1:{port}"));
    refused(builder.bearer_token("s3cret-token")).await;
    assert_eq!(seen.count(), 0);
}

#[tokio::test]
async fn a_server_with_tls_is_not_spoken_to_without() {
    let (address, seen) = serve(&Authority::new(), "127.0.0.1", None).await;
    let builder = GrpcPersistenceProvider::builder(address.replace("https:", "http:"));
    let error = builder.max_attempts(1).connect().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(seen.count(), 0);
}

#[tokio::test]
async fn the_real_server_lets_in_a_certificate_and_a_token() {
    let (authority, database) = (Authority::new(), common::new_database().await);
    let directory = common::temporary_directory();
    let write = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    };
    let (certificate, key) = authority.issue("127.0.0.1");
    let ca = write("ca.pem", &authority.0.pem());
    let certificate = write("server.pem", &certificate);
    let key = write("server.key", &key);
    let policy = write(
        "policy.toml",
        "[[grant]]\nprincipals = [\"token:rust-*\"]\nrole = \"host\"\nnamespaces = [\"default\"]\n",
    );
    let tokens = directory.join("tokens.json");
    let token = |arguments: &[&str]| {
        let mut command = common::server_command();
        command.arg("token").args(arguments).arg("--token-file");
        let output = command.arg(&tokens).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    let (first, second) = (token(&["create", "rust-1"]), token(&["create", "rust-2"]));
    let target = common::start_server(&[
        "--db-url",
        &database,
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
        "--policy-file",
        &policy,
        "--token-file",
        tokens.to_str().unwrap(),
    ]);
    let address = format!("https://{target}");

    let (certificate, key) = authority.issue("host-1");
    let builder = trusting(&authority, &address).client_identity(certificate, key);
    let file = write("token", &first);
    let provider = builder.clone().token_file(&file).connect().await.unwrap();

    // The server looks at its file every second.
    token(&["revoke", "rust-1"]);
    let revoked = loop {
        match provider.store_info().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(revoked.code(), Code::Unauthenticated, "{revoked}");
    write("token", &second);
    provider.store_info().await.unwrap();
    builder
        .clone()
        .bearer_token(second)
        .connect()
        .await
        .unwrap();
    let error = builder
        .bearer_token("no-such-token")
        .connect()
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    assert!(!error.to_string().contains("no-such-token"));
    // Nobody gets in without a certificate, whatever token there is.
    let without = trusting(&authority, &address).token_file(file);
    let error = without.max_attempts(2).connect().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}
