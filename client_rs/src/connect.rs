//! How to reach the server, and how to call it.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::Code;

use crate::call::{Caller, Retry};
use crate::error::Error;
use crate::provider::{Claims, GrpcPersistenceProvider, Saving};
use crate::saving::Memory;

/// Sets up a [`GrpcPersistenceProvider`].
///
/// ```no_run
/// # async fn example() -> Result<(), wfe_persistence_client::Error> {
/// use std::time::Duration;
/// use wfe_persistence_client::GrpcPersistenceProvider;
///
/// let store = GrpcPersistenceProvider::builder("http://store.internal:50052")
///     .namespace("orders")
///     .bearer_token(std::env::var("WFE_TOKEN").unwrap_or_default())
///     .timeout(Duration::from_secs(10))
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Builder {
    endpoint: String,
    timeout: Duration,
    connect_timeout: Duration,
    keepalive: Option<Duration>,
    namespace: Option<String>,
    bearer_token: Option<String>,
    max_message_bytes: usize,
    retry: Retry,
    claims: Claims,
    remember: usize,
    strict: bool,
    #[cfg(feature = "tls")]
    tls: Tls,
}

#[cfg(feature = "tls")]
#[derive(Clone, Default)]
struct Tls {
    ca_certificate: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    domain: Option<String>,
}

impl Builder {
    /// For the server at this address: `http://host:port`, `https://host:port` (with
    /// the feature `tls`), `unix:/path/of/the/socket`, or `host:port`, which is the same
    /// as `http://host:port`. A bad address is an error when connecting.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            keepalive: Some(Duration::from_secs(30)),
            namespace: None,
            bearer_token: None,
            max_message_bytes: 64 * 1024 * 1024,
            remember: 200_000,
            strict: false,
            retry: Retry {
                max_attempts: 10,
                initial_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(2),
            },
            claims: Claims {
                lease: Duration::from_secs(60),
                batch: 20,
                worker_id: format!("rust-{}", std::process::id()),
            },
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        }
    }

    /// How long a call may take, over all its attempts; default: 30 s. The server gets
    /// to know what is left of it, and calls its work off when it has passed. A method
    /// that reads several pages makes one call for each.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long it may take to make a connection; default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often to ask the other side for a sign of life while calls are under way, so
    /// that a dead connection is noticed; default: 30 s. `None`: never. Servers refuse
    /// to be asked more often than every 10 s.
    pub fn keepalive(mut self, interval: Option<Duration>) -> Self {
        self.keepalive = interval;
        self
    }

    /// The namespace, a store of its own on the server; default: the server's default
    /// one. It must exist (see [`GrpcPersistenceProvider::create_namespace`]); else calls
    /// end with `NAMESPACE_NOT_FOUND`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Sends `authorization: Bearer TOKEN` with every call. Without TLS anybody on the
    /// way can read it.
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.bearer_token = Some(token.into());
        self
    }

    /// The largest answer to accept, in bytes; default: 64 MiB. What may be sent is for
    /// the server to say.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// How often a call is made at most, where it may be repeated at all (see the
    /// crate's documentation); default: 10; 1: never again.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retry.max_attempts = attempts.max(1);
        self
    }

    /// The waits between attempts: random, up to `initial` after the first one, up to
    /// twice that after the next, and so on, up to `max`. Default: 100 ms, 2 s. A wait
    /// that the server asks for is added.
    pub fn backoff(mut self, initial: Duration, max: Duration) -> Self {
        self.retry.initial_backoff = initial;
        self.retry.max_backoff = max;
        self
    }

    /// How long `process_commands` claims commands for; default: 60 s, 1 ms to 24 h.
    /// Commands of a host that dies become due again after that; those that take
    /// longer to handle may be handled a second time.
    pub fn command_lease(mut self, lease: Duration) -> Self {
        self.claims.lease = lease;
        self
    }

    /// How many commands `process_commands` claims at a time; default: 20, 1 to 1000.
    /// They are handled one after the other, all within one lease.
    pub fn command_batch(mut self, commands: u32) -> Self {
        self.claims.batch = commands.clamp(1, 1000);
        self
    }

    /// The name under which commands are claimed, for people who look; default:
    /// `rust-PID`; at most 512 bytes.
    pub fn worker_id(mut self, worker_id: impl Into<String>) -> Self {
        self.claims.worker_id = worker_id.into();
        self
    }

    /// The certificate authorities to trust, as PEM; default: those of the system.
    #[cfg(feature = "tls")]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca_certificate = Some(pem.into());
        self
    }

    /// The certificate and key to show to a server that asks for one, as PEM.
    #[cfg(feature = "tls")]
    pub fn client_identity(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        self.tls.identity = Some((certificate_pem.into(), key_pem.into()));
        self
    }

    /// The name the server's certificate must have; default: the host of the address.
    #[cfg(feature = "tls")]
    pub fn domain(mut self, name: impl Into<String>) -> Self {
        self.tls.domain = Some(name.into());
        self
    }

    /// How much to remember of what was loaded or stored last, in execution pointers, plus
    /// one for each workflow (some 60 bytes each, and the workflows' own data); the default
    /// is 200,000. A persist of a remembered workflow sends only what has changed. 0: always
    /// send everything.
    pub fn remember(mut self, pointers: usize) -> Self {
        self.remember = pointers;
        self
    }

    /// A persist of a workflow that somebody else has written, since this provider loaded or
    /// stored it last, fails with `REVISION_MISMATCH`, instead of the last writer winning.
    /// By memory: what is not remembered (see [`Builder::remember`]) is not compared.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Connects, and asks the server what it is, so that a wrong address, token or
    /// namespace is an error now. Tries again like any read, for a server that is just
    /// starting.
    pub async fn connect(self) -> Result<GrpcPersistenceProvider, Error> {
        let provider = self.connect_lazy()?;
        let info = provider.store_info().await?;
        Ok(provider.with_capabilities(info.capabilities.unwrap_or_default()))
    }

    /// Checks the settings, but connects with the first call only. Must be called
    /// within a Tokio runtime.
    pub fn connect_lazy(self) -> Result<GrpcPersistenceProvider, Error> {
        let endpoint = self.endpoint()?;
        let caller = Caller {
            timeout: self.timeout,
            retry: self.retry,
            namespace: self
                .namespace
                .as_deref()
                .map(|namespace| metadata("namespace", namespace))
                .transpose()?,
            authorization: self
                .bearer_token
                .as_deref()
                .map(|token| metadata("bearer token", &format!("Bearer {token}")))
                .transpose()?
                .map(|mut value| {
                    value.set_sensitive(true);
                    value
                }),
        };
        Ok(GrpcPersistenceProvider::from_parts(
            endpoint.connect_lazy(),
            caller,
            self.claims,
            self.max_message_bytes,
            Saving {
                memory: Memory::new(self.remember),
                strict: self.strict,
            },
        ))
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let address = if self.endpoint.starts_with("unix:") || self.endpoint.contains("://") {
            self.endpoint.clone()
        } else {
            format!("http://{}", self.endpoint)
        };
        let https = address.starts_with("https://");
        if !https && !address.starts_with("http://") && !address.starts_with("unix:") {
            return Err(bad(format!(
                "the address {address:?} is neither http://, https:// nor unix:"
            )));
        }
        let mut endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| bad(format!("the address {address:?} is not valid: {error}")))?
            .connect_timeout(self.connect_timeout)
            .tcp_keepalive(self.keepalive);
        if let Some(interval) = self.keepalive {
            endpoint = endpoint.http2_keep_alive_interval(interval);
        }
        if https {
            endpoint = self.with_tls(endpoint)?;
        }
        Ok(endpoint)
    }

    #[cfg(feature = "tls")]
    fn with_tls(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};
        let mut config = match &self.tls.ca_certificate {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        if let Some((certificate, key)) = &self.tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(domain) = &self.tls.domain {
            config = config.domain_name(domain);
        }
        endpoint
            .tls_config(config)
            .map_err(|error| bad(format!("the TLS settings are not valid: {error}")))
    }

    #[cfg(not(feature = "tls"))]
    fn with_tls(&self, _: Endpoint) -> Result<Endpoint, Error> {
        Err(bad(
            "https needs the feature `tls` of wfe-persistence-client".into(),
        ))
    }
}

impl fmt::Debug for Builder {
    /// Without the token and the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("endpoint", &self.endpoint)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

fn metadata(what: &str, value: &str) -> Result<MetadataValue<Ascii>, Error> {
    // The value itself is not shown: it may be a secret.
    MetadataValue::try_from(value)
        .map_err(|_| bad(format!("the {what} has characters that cannot be sent")))
}

fn bad(message: String) -> Error {
    Error::local(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
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
        let error = Builder::new("x:1")
            .bearer_token("secret\n")
            .connect_lazy()
            .unwrap_err();
        assert!(!error.to_string().contains("secret"));
        assert!(Builder::new("x:1")
            .namespace("a\nb")
            .connect_lazy()
            .is_err());
        let builder = Builder::new("x:1").bearer_token("secret");
        assert!(!format!("{builder:?}").contains("secret"));
        let provider = builder.connect_lazy().unwrap();
        assert!(!format!("{provider:?}").contains("secret"));
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
}
