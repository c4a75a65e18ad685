//! Connecting to a server: its address, and the settings of a provider.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;

use crate::cache::Cache;
use crate::call::{Caller, Retry};
use crate::clients::Clients;
use crate::error::Error;
use crate::provider::{Claims, GrpcPersistenceProvider, Options};

/// Configures and connects a [`GrpcPersistenceProvider`].
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

// Here rather than beside the other methods: the provider does not depend on its builder.
impl GrpcPersistenceProvider {
    /// Connects with the defaults of [`Builder`].
    ///
    /// # Errors
    ///
    /// The address is invalid, or no server can be reached.
    pub async fn new(endpoint: impl Into<String>) -> Result<Self, Error> {
        Self::builder(endpoint).connect().await
    }

    /// Configures a provider for the server at this address; see [`Builder::new`].
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder::new(endpoint)
    }
}

impl Builder {
    /// Configures a provider for the server at this address: `http://host:port`,
    /// `https://host:port` (with the feature `tls`), `unix:/path/of/the/socket`, or
    /// `host:port`, which means `http://host:port`. An invalid address is reported when
    /// connecting.
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
            retry: Retry::default(),
            claims: Claims {
                lease: Duration::from_secs(60),
                batch: 20,
                worker_id: format!("rust-{}", std::process::id()),
            },
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        }
    }

    /// The timeout of a call, over all its attempts; default: 30 s. Each attempt carries the
    /// time left as its deadline, and the server cancels the call when that has passed. A
    /// method that reads several pages makes one call per page.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The timeout for establishing a connection; default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The interval of keepalive pings while calls are in progress, so that a dead connection
    /// is detected; default: 30 s. `None`: no pings. The server closes connections that send
    /// more than one ping per 10 s.
    pub fn keepalive(mut self, interval: Option<Duration>) -> Self {
        self.keepalive = interval;
        self
    }

    /// The namespace, a separate store on the same server; default: the server's default
    /// namespace. It must exist (see [`GrpcPersistenceProvider::create_namespace`]),
    /// otherwise calls fail with `NAMESPACE_NOT_FOUND`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Sends `authorization: Bearer TOKEN` with every call. Without TLS the token is sent in
    /// plain text.
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.bearer_token = Some(token.into());
        self
    }

    /// The maximum size of a response message, in bytes; default: 64 MiB. The size of
    /// requests is limited by the server only.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The maximum number of attempts of a call that may be retried (see the
    /// [crate's documentation](crate#retries)); by default only the timeout ends them, so that
    /// a server that is away for a while goes unnoticed. 1 (or 0): no retries.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retry.max_attempts = attempts.max(1);
        self
    }

    /// The exponential backoff between attempts, with full jitter: a random wait of up to
    /// `initial` after the first attempt, of up to twice that after the second, and so on, of
    /// up to `max`. Default: 100 ms, 2 s. A delay that the server asks for is added.
    pub fn backoff(mut self, initial: Duration, max: Duration) -> Self {
        self.retry.initial_backoff = initial;
        self.retry.max_backoff = max;
        self
    }

    /// The lease under which `process_commands` claims commands; default: 60 s, 1 ms to 24 h.
    /// When it expires, the commands of a host that died can be claimed again; commands that
    /// take longer to handle may be handled twice.
    pub fn command_lease(mut self, lease: Duration) -> Self {
        self.claims.lease = lease;
        self
    }

    /// The number of commands that `process_commands` claims at once; default: 20, 1 to 1000
    /// (other values are clamped). They are handled one after the other, all within one
    /// lease.
    pub fn command_batch(mut self, commands: u32) -> Self {
        self.claims.batch = commands.clamp(1, 1000);
        self
    }

    /// The name under which commands are claimed, for diagnosis; default: `rust-PID`. Maximum
    /// 512 bytes.
    pub fn worker_id(mut self, worker_id: impl Into<String>) -> Self {
        self.claims.worker_id = worker_id.into();
        self
    }

    /// The certificate authorities (CAs) to trust, as PEM; default: those of the system.
    #[cfg(feature = "tls")]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca_certificate = Some(pem.into());
        self
    }

    /// The client certificate and its key, as PEM, for servers that require one (mutual TLS).
    #[cfg(feature = "tls")]
    pub fn client_identity(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        self.tls.identity = Some((certificate_pem.into(), key_pem.into()));
        self
    }

    /// The name that the server's certificate must be valid for; default: the host of the
    /// address.
    #[cfg(feature = "tls")]
    pub fn domain(mut self, name: impl Into<String>) -> Self {
        self.tls.domain = Some(name.into());
        self
    }

    /// The capacity of the cache of workflows loaded or stored last, in execution pointers plus
    /// one per workflow; default: 200,000. A pointer takes about 60 bytes, a workflow its data.
    /// Persisting a cached workflow sends only what has changed; the least recently used
    /// workflows are evicted. 0: no cache, every write sends the full state.
    pub fn remember(mut self, pointers: usize) -> Self {
        self.remember = pointers;
        self
    }

    /// Optimistic concurrency control: persisting a workflow that another writer has changed
    /// since this provider last loaded or stored it fails with `REVISION_MISMATCH`, instead
    /// of the last writer winning; so does every further attempt until the workflow is loaded
    /// again. A workflow that was deleted and created again counts as changed. Only cached
    /// workflows are checked (see [`Builder::remember`]). Default: false.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Connects and calls `GetStoreInfo`, so that a wrong address, token or namespace is
    /// reported now. The call is retried like any read, which allows for a server that is
    /// still starting.
    ///
    /// # Errors
    ///
    /// A setting is invalid, no server can be reached, or the server rejects the call.
    pub async fn connect(self) -> Result<GrpcPersistenceProvider, Error> {
        let provider = self.connect_lazy()?;
        let info = provider.store_info().await?;
        Ok(provider.with_capabilities(info.capabilities.unwrap_or_default()))
    }

    /// Checks the settings, but connects only with the first call.
    ///
    /// # Errors
    ///
    /// A setting is invalid.
    ///
    /// # Panics
    ///
    /// It is called outside a Tokio runtime.
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
            Clients::new(endpoint.connect_lazy(), self.max_message_bytes),
            caller,
            Options {
                claims: self.claims,
                cache: Cache::new(self.remember),
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
            return Err(Error::invalid(format!(
                "the address {address:?} does not start with http://, https:// or unix:"
            )));
        }
        let mut endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| {
                Error::invalid(format!("the address {address:?} is not valid: {error}"))
            })?
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
            .map_err(|error| Error::invalid(format!("the TLS settings are not valid: {error}")))
    }

    #[cfg(not(feature = "tls"))]
    fn with_tls(&self, _: Endpoint) -> Result<Endpoint, Error> {
        Err(Error::invalid(
            "https:// requires the feature `tls` of wfe-persistence-client",
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
    MetadataValue::try_from(value).map_err(|_| {
        Error::invalid(format!(
            "the {what} contains characters that are not allowed in metadata"
        ))
    })
}

#[cfg(test)]
mod tests {
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
