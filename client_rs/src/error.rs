//! Why a call failed, and the error that the engine gets.

mod status;
mod transport;

#[cfg(test)]
pub(crate) use self::status::tests::status;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tonic::Code;
use wfe_core::WfeError;

pub(crate) use self::status::is_disconnected;
use crate::v1::ErrorReason;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call to the persistence server failed.
///
/// Programs should match on [`reason`](Self::reason) or [`code`](Self::code), never on the
/// text. The engine's traits return a [`WfeError`] instead, converted from this:
/// `WorkflowNotFound`, `EventNotFound` and `SubscriptionNotFound` for those reasons, with
/// the requested id or name; otherwise `Persistence` with this error's text, which begins
/// with the name of the reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Error(Box<Inner>);

// Boxed, so that the results of successful calls stay small.
#[derive(Debug, Clone, PartialEq)]
struct Inner {
    code: Code,
    reason: Option<ErrorReason>,
    message: String,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
    retry_after: Option<Duration>,
    maybe_written: bool,
    tls: bool,
    subject: String,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path, for example `instance.execution_pointers[3].outcome_json`.
    pub field: String,
    /// What is wrong, as text for people.
    pub description: String,
    /// What is wrong, for programs: the name of a `FieldViolationReason`; may be empty.
    pub reason: String,
}

impl Error {
    /// The gRPC status code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The reason that the server gave; for a call that gRPC itself or a proxy ended (the
    /// deadline passed, no connection, a message too large), the one that its status means:
    /// see [`ErrorReason`]. `None` for a value that cannot be sent or an invalid setting, or if
    /// this version does not know the server's reason.
    pub fn reason(&self) -> Option<ErrorReason> {
        self.0.reason
    }

    /// What went wrong, as text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Details that belong to the reason, for example `revision`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.0.metadata
    }

    /// The invalid fields, if the reason is `INVALID_FIELD`.
    pub fn violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// How long the server asks the client to wait before a retry.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// True if the outcome is unknown: the call writes, and this or an earlier attempt may
    /// have been committed.
    pub fn maybe_written(&self) -> bool {
        self.0.maybe_written
    }

    /// True if TLS failed: the server's certificate is not trusted or not valid for its name,
    /// the server does not use TLS, or it rejects this client's certificate. The code is
    /// `UNAVAILABLE`, but the call is not retried, because a retry would fail in the same way.
    /// Always false without the feature `tls`.
    pub fn is_tls(&self) -> bool {
        self.0.tls
    }

    /// An error that did not come from the server.
    fn local(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            reason: None,
            message: message.into(),
            metadata: HashMap::new(),
            violations: Vec::new(),
            retry_after: None,
            maybe_written: false,
            tls: false,
            subject: String::new(),
        }))
    }

    /// A value that cannot be sent, or an invalid setting.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::local(Code::InvalidArgument, message)
    }

    /// What the client itself refuses, for a reason that the server has, too.
    pub(crate) fn refused(reason: ErrorReason, message: &str) -> Self {
        let mut error = Self::local(Code::AlreadyExists, message);
        error.0.reason = Some(reason);
        error
    }

    /// A response that cannot be converted to the engine's model.
    pub(crate) fn bad_response(what: &str) -> Self {
        let mut error = Self::local(Code::Internal, format!("the server returned {what}"));
        error.0.reason = Some(ErrorReason::Internal);
        error
    }

    /// Something that the server left out of a list or stream, because it does not fit in
    /// one message.
    pub(crate) fn left_out(what: &str) -> Self {
        let mut error = Self::local(
            Code::ResourceExhausted,
            format!("{what} does not fit in one message"),
        );
        error.0.reason = Some(ErrorReason::AnswerTooLarge);
        error
    }

    /// The client's own deadline has passed.
    pub(crate) fn deadline() -> Self {
        let mut error = Self::local(Code::DeadlineExceeded, "no response before the deadline");
        error.0.reason = Some(ErrorReason::DeadlineExceeded);
        error.0.maybe_written = true;
        error
    }

    /// There was no time left to send anything.
    pub(crate) fn no_time_left() -> Self {
        let mut error = Self::deadline();
        error.0.message = "no time was left to send the call".into();
        error.0.maybe_written = false;
        error
    }

    /// The error to return for a write if this or an earlier attempt may have been committed:
    /// the reasons that say otherwise are only those of the last attempt.
    pub(crate) fn outcome(mut self) -> Self {
        let reason = self.0.reason.filter(|_| self.is_transient() || self.0.tls);
        if let Some(reason) = reason {
            if self.0.maybe_written && reason != ErrorReason::CommitOutcomeUnknown {
                self.0.message = format!(
                    "the last attempt failed with {}: {}",
                    name(reason),
                    self.0.message
                );
                self.0.reason = Some(ErrorReason::CommitOutcomeUnknown);
            }
        }
        self
    }

    /// Whether the connection broke after something may have been sent.
    pub(crate) fn is_interruption(&self) -> bool {
        self.0.reason == Some(ErrorReason::ServerUnreachable) && self.0.maybe_written
    }

    /// Whether a retry may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        let unreachable = self.0.code == Code::Unavailable
            || self.0.reason == Some(ErrorReason::ServerUnreachable);
        (unreachable && !self.0.tls)
            || matches!(
                self.0.reason,
                Some(
                    ErrorReason::TransactionConflict
                        | ErrorReason::RowLocked
                        | ErrorReason::PoolExhausted
                        | ErrorReason::NamespaceBusy
                        | ErrorReason::TooManyCalls
                        | ErrorReason::CallerLimited
                        | ErrorReason::AdministrationBusy
                        | ErrorReason::ReaderTooSlow
                )
            )
    }

    pub(crate) fn set_maybe_written(&mut self, maybe_written: bool) {
        self.0.maybe_written = maybe_written;
    }

    /// Adds the requested id or name.
    pub(crate) fn about(mut self, subject: &str) -> Self {
        subject.clone_into(&mut self.0.subject);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.reason {
            Some(reason) => f.write_str(name(reason))?,
            None => write!(f, "{:?}", self.0.code)?,
        }
        if !self.0.message.is_empty() {
            write!(f, ": {}", self.0.message)?;
        }
        for violation in &self.0.violations {
            write!(f, "; {}: {}", violation.field, violation.description)?;
        }
        if self.0.maybe_written {
            f.write_str(" (the write may or may not have been committed)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for WfeError {
    fn from(error: Error) -> Self {
        match error.0.reason {
            Some(ErrorReason::WorkflowNotFound) => Self::WorkflowNotFound(error.0.subject),
            Some(ErrorReason::EventNotFound) => Self::EventNotFound(error.0.subject),
            Some(ErrorReason::SubscriptionNotFound) => Self::SubscriptionNotFound(error.0.subject),
            _ => Self::Persistence(error.to_string()),
        }
    }
}

/// A reason as `ErrorInfo` carries it, without its prefix.
fn name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}
