//! Connecting to a server: its address, and the settings of a provider.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;

use crate::cache::Cache;
use crate::call::{Caller, Retry};
use crate::error::Error;
use crate::host::HostSettings;
use crate::namespace_set::GrpcNamespaceSet;
use crate::pool::Pool;
use crate::positions::{Positions, Reads};
use crate::provider::{Claims, GrpcPersistenceProvider, Options};
use crate::token::{self, Authorization};
use crate::v1;

/// Configures and connects a [`GrpcPersistenceProvider`] or a [`GrpcHost`](crate::GrpcHost).
///
/// ```no_run
/// # async fn example() -> Result<(), wfe_persistence_client::Error> {
/// use std::time::Duration;
/// use wfe_persistence_client::GrpcPersistenceProvider;
///
/// let store = GrpcPersistenceProvider::builder("https://store.internal:50052")
///     .namespace("orders")
///     .token_file("/run/secrets/token")
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
    token: Option<Token>,
    insecure_token: bool,
    max_message_bytes: usize,
    channels: usize,
    retry: Retry,
    claims: Claims,
    remember: usize,
    keep_bytes: usize,
    strict: bool,
    reads: Option<Reads>,
    pub(crate) host: HostSettings,
    #[cfg(feature = "tls")]
    tls: Tls,
}

const MOST_CHANNELS: usize = 64;

#[derive(Clone)]
enum Token {
    Constant(String),
    File(PathBuf),
    Function(Authorization),
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
            token: None,
            insecure_token: false,
            max_message_bytes: 64 * 1024 * 1024,
            channels: 1,
            remember: 200_000,
            keep_bytes: 64 * 1024 * 1024,
            strict: false,
            reads: None,
            host: HostSettings::default(),
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

    /// Sends `authorization: Bearer TOKEN` with every call. A token is sent over TLS, to this
    /// machine (a loopback address), or over a Unix socket: [`connect`](Self::connect) refuses
    /// other addresses, see [`allow_insecure_token`](Self::allow_insecure_token).
    ///
    /// Of `bearer_token`, [`token_file`](Self::token_file) and
    /// [`token_function`](Self::token_function), the last one that was called counts.
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Token::Constant(token.into()));
        self
    }

    /// Sends the content of this file as the token, without white space around it. It is read
    /// before each attempt, so that a token can be replaced, as Kubernetes does, without a
    /// restart; while it cannot be read, the last token stays in use. A call that is rejected
    /// (`UNAUTHENTICATED`) is retried once if the file has another token by then. When
    /// connecting, the file must exist.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Token::File(path.into()));
        self
    }

    /// Sends what this function returns as the token. It is called before each attempt and must
    /// not block: get tokens in a task of their own, and return the current one here. If it
    /// fails, so does the call, and nothing is sent. A call that is rejected (`UNAUTHENTICATED`)
    /// is retried once if the function returns another token by then.
    pub fn token_function<F, E>(mut self, function: F) -> Self
    where
        F: Fn() -> Result<String, E> + Send + Sync + 'static,
        E: fmt::Display,
    {
        self.token = Some(Token::Function(token::function(function)));
        self
    }

    /// Whether a token may be sent in plain text over a network, where others may be able to
    /// read it; for networks that encrypt everything themselves. Default: false.
    pub fn allow_insecure_token(mut self, allow: bool) -> Self {
        self.insecure_token = allow;
        self
    }

    /// The maximum size of a response message, in bytes; default: 64 MiB. The size of
    /// requests is limited by the server only.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The number of connections, over which the calls are spread; default: 1, from 1 to 64 (other
    /// values are reported when connecting). More than one make sense if one host keeps several
    /// processes of a server busy (`--workers`), or several servers behind one address: a
    /// connection stays with one. A call goes to the connection with the fewest calls in progress,
    /// of those that are there; one that breaks is made again while the others are used.
    pub fn channels(mut self, channels: usize) -> Self {
        self.channels = channels;
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

    /// The client certificate, with its chain, and its key, as PEM, for servers that require one
    /// (mutual TLS). They stay in use until the provider is dropped: connect a new one when the
    /// files that they came from have changed, before the certificate expires.
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

    /// The memory for execution pointers of long workflows, roughly; default: 64 MiB. Of a workflow
    /// with 64 or more that was loaded before, only the header is read, if its revision is still
    /// the same. (Every writer makes a new one; who changes pointers by hand has to update the row
    /// of the workflow, too.) 0, or [`remember`](Self::remember) 0: nothing is kept.
    pub fn keep(mut self, bytes: usize) -> Self {
        self.keep_bytes = bytes;
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

    /// Where the server reads, if its database has replicas: [`Reads::Replica`] for what may be stale
    /// by a moment. Default, also for `None`: lists, counts and what is behind in feeds from a replica,
    /// all else from the primary. Whatever this provider and its clones have written, its reads
    /// contain; what others have written may be missing for up to 2 s, or as the server is set up.
    /// Not for hosts: what they load to write it should be current.
    pub fn reads(mut self, reads: impl Into<Option<Reads>>) -> Self {
        self.reads = reads.into();
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

    /// Connects to a namespace set: one store that is spread over several namespaces. The server
    /// says which they are, so no client can be told a wrong number of them. The namespace of
    /// [`Builder::namespace`] does not matter.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::connect`]; `NAMESPACE_SET_NOT_FOUND`; `NAMESPACE_SET_INCOMPLETE`: its
    /// creation or deletion has not been finished.
    pub async fn connect_set(self, name: &str) -> Result<GrpcNamespaceSet, Error> {
        let provider = self.connect_lazy()?;
        let request = v1::GetNamespaceSetRequest { name: name.into() };
        let found = provider.call(&request).await?.namespace_set;
        let mut members = Vec::new();
        for member in found.unwrap_or_default().members {
            let namespace = metadata("namespace", &member)?;
            members.push(provider.clone().in_namespace(namespace));
        }
        let Some(first) = members.first() else {
            return Err(Error::bad_response("a namespace set without members"));
        };
        let capabilities = first.store_info().await?.capabilities.unwrap_or_default();
        let members = members
            .into_iter()
            .map(|member| member.with_capabilities(capabilities));
        Ok(GrpcNamespaceSet::new(members.collect()))
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
        if !(1..=MOST_CHANNELS).contains(&self.channels) {
            return Err(Error::invalid(format!(
                "there are {} channels, but must be from 1 to {MOST_CHANNELS}",
                self.channels
            )));
        }
        let channels = (0..self.channels).map(|_| endpoint.connect_lazy());
        let caller = Caller {
            timeout: self.timeout,
            retry: self.retry,
            namespace: self
                .namespace
                .as_deref()
                .map(|namespace| metadata("namespace", namespace))
                .transpose()?,
            authorization: self.authorization()?,
            positions: Positions::new(self.reads),
        };
        Ok(GrpcPersistenceProvider::from_parts(
            Pool::new(channels, self.max_message_bytes),
            caller,
            Options {
                claims: self.claims,
                cache: Cache::new(self.remember, self.keep_bytes),
                strict: self.strict,
            },
        ))
    }

    fn authorization(&self) -> Result<Option<Authorization>, Error> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        if !self.insecure_token && !token::is_private(&self.address()) {
            return Err(Error::invalid(format!(
                "a token is not sent to {} in plain text: use https://, or allow_insecure_token",
                self.endpoint
            )));
        }
        Ok(Some(match token {
            Token::Constant(token) => token::constant(token)?,
            Token::File(path) => token::file(path.clone())?,
            Token::Function(function) => Arc::clone(function),
        }))
    }

    fn address(&self) -> String {
        if self.endpoint.starts_with("unix:") || self.endpoint.contains("://") {
            self.endpoint.clone()
        } else {
            format!("http://{}", self.endpoint)
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let address = self.address();
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
mod tests;
