//! What every call has: a deadline, safe retries, typed errors.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status};

use crate::error::Error;
use crate::positions::Positions;
use crate::rpc::{Rpc, Safety};
use crate::token::Authorization;

/// A longer timeout is this one, so that the sum of a time and a timeout is a time.
const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// How often a call is retried, and with what backoff.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub(crate) max_attempts: u32,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: u32::MAX,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        }
    }
}

impl Retry {
    /// The wait after this many attempts, from 1: random (full jitter), below a bound that
    /// doubles with each attempt.
    fn backoff(&self, attempts: u32) -> Duration {
        let bound = self
            .initial_backoff
            .saturating_mul(1u32.checked_shl(attempts - 1).unwrap_or(u32::MAX))
            .min(self.max_backoff);
        bound.mul_f64(random())
    }
}

/// A number from 0 to 1. A UUID is random enough for jitter, and saves a dependency.
fn random() -> f64 {
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    (low & 0xffff_ffff) as f64 / f64::from(u32::MAX)
}

/// What all calls of a provider have in common: the metadata they send, how long they may
/// take, how they are retried.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
    pub(crate) namespace: Option<MetadataValue<Ascii>>,
    pub(crate) authorization: Option<Authorization>,
    pub(crate) positions: Positions,
}

impl Caller {
    /// Makes a call: sends the request, retries it as its RPC permits, and returns the
    /// response. `send` sends one attempt, each of which has its own copy of the request.
    ///
    /// If a retry fails because an earlier attempt took effect (see [`Rpc::rule`]), the
    /// response is lost, and the default one is returned.
    pub(crate) async fn call<Q, A, S, F>(&self, rpc: Rpc, request: &Q, send: S) -> Result<A, Error>
    where
        Q: Clone,
        A: Default,
        S: Fn(Request<Q>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let (safety, done) = rpc.rule();
        let reads = safety == Safety::Read;
        let deadline = Instant::now() + self.timeout.min(LONGEST);
        let mut maybe_written = false;
        let mut attempts = 0;
        let mut renewed = false;
        loop {
            attempts += 1;
            let left = deadline.saturating_duration_since(Instant::now());
            let authorization = self.authorization();
            let mut error = match &authorization {
                // Checked here, because a timeout of 0 would still send it.
                _ if left.is_zero() => Error::no_time_left(),
                Err(error) => error.clone(),
                Ok(authorization) => {
                    let mut sent = self.addressed(request.clone(), authorization.clone(), reads);
                    sent.set_timeout(left);
                    let write = (!reads).then(|| self.positions.write());
                    let error = match tokio::time::timeout(left, send(sent)).await {
                        Ok(Ok(response)) => {
                            if let Some(write) = write {
                                write.succeeded(response.metadata());
                            }
                            return Ok(response.into_inner());
                        }
                        Ok(Err(status)) => Error::from_status(&status),
                        Err(_) => Error::deadline(),
                    };
                    if let Some(write) = write.filter(|_| !error.maybe_written()) {
                        write.failed();
                    }
                    error
                }
            };
            // A server may end a call whose deadline has passed without saying so.
            if error.is_interruption() && Instant::now() >= deadline {
                error = Error::deadline();
            }
            if maybe_written && done.is_some() && error.reason() == done {
                return Ok(A::default());
            }
            maybe_written |= error.maybe_written() && safety != Safety::Read;
            error.set_maybe_written(maybe_written);
            // A token may expire, or be replaced, at any time.
            let renews = !renewed
                && error.code() == Code::Unauthenticated
                && self.authorization() != authorization;
            renewed |= renews;
            let wait = if renews {
                Duration::ZERO
            } else {
                self.retry.backoff(attempts) + error.retry_after().unwrap_or(Duration::ZERO)
            };
            if !(error.is_transient() || renews)
                || (maybe_written && safety == Safety::Unrepeatable)
                || attempts >= self.retry.max_attempts
                || wait >= deadline.saturating_duration_since(Instant::now())
            {
                return Err(error.outcome());
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The request of a stream to read, which lasts until one side ends it.
    pub(crate) fn endless<Q>(&self, message: Q) -> Result<Request<Q>, Error> {
        Ok(self.addressed(message, self.authorization()?, true))
    }

    /// A request with its metadata. `reads`: it changes nothing.
    fn addressed<Q>(
        &self,
        message: Q,
        authorization: Option<MetadataValue<Ascii>>,
        reads: bool,
    ) -> Request<Q> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(namespace) = &self.namespace {
            metadata.insert("wfe-namespace", namespace.clone());
        }
        if let Some(authorization) = authorization {
            metadata.insert("authorization", authorization);
        }
        if reads {
            self.positions.add_to(metadata);
        }
        request
    }

    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        self.authorization
            .as_ref()
            .map(|current| current())
            .transpose()
    }
}

#[cfg(test)]
mod tests;
