use tonic::Code;

use super::*;

#[tokio::test]
async fn addresses() {
    for good in [
        "http://localhost:1",
        "localhost:1",
        "127.0.0.1:1",
        "[::1]:1",
        "unix:/run/wfe.sock",
        "unix:///run/wfe.sock",
    ] {
        Builder::new(good).connect_lazy().expect(good);
    }
    for bad in ["", "ftp://x", "http://", "a b:1", "postgres://x/y"] {
        let error = Builder::new(bad).connect_lazy().expect_err(bad);
        assert_eq!(error.code(), Code::InvalidArgument, "{bad}");
    }
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn https_without_tls_is_refused() {
    let error = Builder::new("https://x:1").connect_lazy().unwrap_err();
    assert!(error.message().contains("feature `tls`"));
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_settings() {
    Builder::new("https://x:1")
        .domain("y")
        .connect_lazy()
        .unwrap();
    let bad = Builder::new("https://x:1").client_identity("no", "pem");
    assert!(bad.connect_lazy().is_err());
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_and_not_shown() {
    let error = Builder::new("localhost:1")
        .bearer_token("secret\n")
        .connect_lazy()
        .unwrap_err();
    assert!(!error.to_string().contains("secret"));
    assert!(Builder::new("localhost:1")
        .namespace("a\nb")
        .connect_lazy()
        .is_err());
    let builder = Builder::new("localhost:1").bearer_token("secret");
    assert!(!format!("{builder:?}").contains("secret"));
    let provider = builder.connect_lazy().unwrap();
    assert!(!format!("{provider:?}").contains("secret"));
}

#[tokio::test]
async fn a_token_is_not_sent_in_plain_text() {
    let builder = Builder::new("http://store.example:1").bearer_token("secret");
    let error = builder.clone().connect_lazy().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("allow_insecure_token"), "{error}");
    assert!(!error.to_string().contains("secret"));
    builder.allow_insecure_token(true).connect_lazy().unwrap();
    Builder::new("http://store.example:1")
        .connect_lazy()
        .unwrap();
    for private in ["localhost:1", "unix:/run/wfe.sock"] {
        let builder = Builder::new(private).bearer_token("secret");
        builder.connect_lazy().unwrap();
    }
}

#[tokio::test]
async fn no_server_is_unavailable_and_surely_not_written() {
    let provider = Builder::new("127.0.0.1:1")
        .max_attempts(2)
        .connect_lazy()
        .unwrap();
    let error = provider.truncate_all().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(!error.maybe_written());
}
