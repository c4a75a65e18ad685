//! What a gRPC status and its details say about a failure.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use super::transport::reason_of;
use super::{Error, FieldViolation};
use crate::v1::ErrorReason;

/// The `domain` of this API's `ErrorInfo`.
const DOMAIN: &str = "wfe.persistence";

impl Error {
    /// The error of a failed attempt. `maybe_written` is set as for a write.
    pub(crate) fn from_status(status: &Status) -> Self {
        let mut error = Self::local(status.code(), status.message());
        let mut from_server = false;
        if let Ok(details) = RpcStatus::decode(status.details()) {
            from_server = error.read_details(&details.details);
        }
        if let Some(reason) = error.0.reason {
            error.0.maybe_written = matches!(
                reason,
                ErrorReason::CommitOutcomeUnknown | ErrorReason::Internal
            );
            return error;
        }
        if let Some(source) = std::error::Error::source(status) {
            if has_cause::<tonic::TimeoutExpired>(source) {
                return Self::deadline();
            }
            // Made by this client when the connection failed. tonic gives it the code UNKNOWN,
            // INTERNAL or CANCELLED, depending on when that was.
            error.0.code = Code::Unavailable;
            error.0.reason = Some(ErrorReason::ServerUnreachable);
            error.0.message = chain(source);
            error.0.maybe_written = !has_cause::<tonic::ConnectError>(source);
            error.0.tls = is_tls(source);
            return error;
        }
        // These codes mean that the call was not executed.
        error.0.maybe_written = !matches!(
            error.0.code,
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
        );
        if !from_server {
            error.name_transport();
        }
        error
    }

    /// Names the reason of a status that gRPC itself or a proxy made.
    fn name_transport(&mut self) {
        let Some((reason, limit)) = reason_of(self.0.code, &self.0.message) else {
            return;
        };
        self.0.reason = Some(reason);
        if let Some(limit) = limit {
            // tonic's decoder says OUT_OF_RANGE.
            self.0.code = Code::ResourceExhausted;
            self.0.metadata.insert("limit_bytes".into(), limit);
        }
        // A request that was too large was not executed.
        self.0.maybe_written &= reason != ErrorReason::MessageTooLarge;
    }

    /// Returns whether the server gave a reason, even if this version does not know it.
    fn read_details(&mut self, details: &[prost_types::Any]) -> bool {
        let mut from_server = false;
        for detail in details {
            // The type's name follows the last slash of the URL.
            let Some((_, name)) = detail.type_url.rsplit_once('/') else {
                continue;
            };
            let value = detail.value.as_slice();
            match name {
                "google.rpc.ErrorInfo" => {
                    let Ok(info) = ErrorInfo::decode(value) else {
                        continue;
                    };
                    if info.domain == DOMAIN {
                        from_server = true;
                        self.0.reason =
                            ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason));
                        self.0.metadata = info.metadata;
                    }
                }
                "google.rpc.RetryInfo" => {
                    self.0.retry_after = RetryInfo::decode(value)
                        .ok()
                        .and_then(|info| info.retry_delay)
                        .and_then(|delay| Duration::try_from(delay).ok());
                }
                "google.rpc.BadRequest" => {
                    if let Ok(bad) = BadRequest::decode(value) {
                        self.0.violations = bad
                            .field_violations
                            .into_iter()
                            .map(|violation| FieldViolation {
                                field: violation.field,
                                description: violation.description,
                                reason: violation.reason,
                            })
                            .collect();
                    }
                }
                _ => {}
            }
        }
        from_server
    }
}

/// Whether it was made by this client, because there is no connection, or none any more.
pub(crate) fn is_disconnected(status: &Status) -> bool {
    std::error::Error::source(status)
        .is_some_and(|source| !has_cause::<tonic::TimeoutExpired>(source))
}

/// Whether an error is, or was caused by, a `T`. A `ConnectError` means that there was no
/// connection, so nothing was sent.
fn has_cause<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<T>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether an error is, or was caused by, a TLS error.
#[cfg(feature = "tls")]
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // `source` of an `io::Error` skips the error that it wraps.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>() || wrapped.is_some_and(|inner| is_tls(inner)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(not(feature = "tls"))]
fn is_tls(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}

/// The message of an error and those of its causes, without repetitions.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}

// The messages of google.rpc, as far as they are used here.

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[derive(Clone, PartialEq, Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<RpcFieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
struct RpcFieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(string, tag = "3")]
    reason: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use wfe_core::WfeError;

    use super::*;

    fn any(name: &str, message: &impl Message) -> prost_types::Any {
        prost_types::Any {
            type_url: format!("type.googleapis.com/google.rpc.{name}"),
            value: message.encode_to_vec(),
        }
    }

    fn info(reason: &str, domain: &str) -> ErrorInfo {
        ErrorInfo {
            reason: reason.into(),
            domain: domain.into(),
            metadata: HashMap::from([("revision".to_string(), "7".to_string())]),
        }
    }

    /// A status as the server sends it.
    pub(crate) fn status(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
        let mut details = vec![any("ErrorInfo", &info(reason, DOMAIN))];
        if let Some(delay) = retry_after {
            let retry_delay = Some(delay.try_into().unwrap());
            details.push(any("RetryInfo", &RetryInfo { retry_delay }));
        }
        with_details(code, details)
    }

    fn with_details(code: Code, details: Vec<prost_types::Any>) -> Status {
        let message = "in words".to_string();
        let status = RpcStatus {
            code: code as i32,
            message: message.clone(),
            details,
        };
        Status::with_details(code, message, status.encode_to_vec().into())
    }

    #[test]
    fn engine_variants_come_from_the_reason() {
        let engine = |code, reason| -> WfeError {
            Error::from_status(&status(code, reason, None))
                .about("x-1")
                .into()
        };
        assert!(
            matches!(engine(Code::NotFound, "WORKFLOW_NOT_FOUND"), WfeError::WorkflowNotFound(id) if id == "x-1")
        );
        assert!(
            matches!(engine(Code::NotFound, "EVENT_NOT_FOUND"), WfeError::EventNotFound(id) if id == "x-1")
        );
        assert!(
            matches!(engine(Code::NotFound, "SUBSCRIPTION_NOT_FOUND"), WfeError::SubscriptionNotFound(id) if id == "x-1")
        );
        let other = engine(Code::NotFound, "NAMESPACE_NOT_FOUND");
        assert!(
            matches!(&other, WfeError::Persistence(text) if text == "NAMESPACE_NOT_FOUND: in words"),
            "{other:?}"
        );
    }

    #[test]
    fn a_bare_status_is_no_engine_variant() {
        let mut error = Error::from_status(&Status::not_found("Workflow not found"));
        error.set_maybe_written(false); // as of a read
        let error: WfeError = error.into();
        assert!(
            matches!(&error, WfeError::Persistence(text) if text == "NotFound: Workflow not found")
        );
    }

    #[test]
    fn foreign_and_unknown_reasons_are_none() {
        let foreign = vec![any("ErrorInfo", &info("WORKFLOW_NOT_FOUND", "example.org"))];
        let error = Error::from_status(&with_details(Code::NotFound, foreign));
        assert_eq!(error.reason(), None);
        let error = Error::from_status(&status(Code::NotFound, "NEW_IN_A_LATER_SERVER", None));
        assert_eq!(error.reason(), None);
        assert_eq!(error.code(), Code::NotFound);
        // Nor is it taken for a limit of gRPC's.
        let error = Error::from_status(&status(Code::ResourceExhausted, "A_NEW_LIMIT", None));
        assert_eq!((error.reason(), error.maybe_written()), (None, true));
    }

    #[test]
    fn garbage_in_the_details_is_no_panic() {
        let garbage = Status::with_details(Code::Aborted, "x", vec![0xff; 9].into());
        assert_eq!(Error::from_status(&garbage).reason(), None);
        let garbage = vec![prost_types::Any {
            type_url: "type.googleapis.com/google.rpc.ErrorInfo".into(),
            value: vec![0xff; 9],
        }];
        let error = Error::from_status(&with_details(Code::Aborted, garbage));
        assert_eq!((error.code(), error.reason()), (Code::Aborted, None));
    }

    #[test]
    fn details_are_read() {
        let bad = BadRequest {
            field_violations: vec![RpcFieldViolation {
                field: "instance.data_json".into(),
                description: "no JSON".into(),
                reason: "JSON_INVALID".into(),
            }],
        };
        let error = Error::from_status(&with_details(
            Code::InvalidArgument,
            vec![
                any("ErrorInfo", &info("INVALID_FIELD", DOMAIN)),
                any("BadRequest", &bad),
            ],
        ));
        assert_eq!(error.violations()[0].field, "instance.data_json");
        assert_eq!(
            error.to_string(),
            "INVALID_FIELD: in words; instance.data_json: no JSON"
        );
        assert_eq!(error.metadata()["revision"], "7");

        let wait = Duration::from_millis(1500);
        let error = Error::from_status(&status(
            Code::Unavailable,
            "DATABASE_UNAVAILABLE",
            Some(wait),
        ));
        assert_eq!(error.retry_after(), Some(wait));
    }

    #[test]
    fn what_may_have_been_written() {
        let after = |status: &Status| Error::from_status(status).maybe_written();
        assert!(after(&status(
            Code::Unavailable,
            "COMMIT_OUTCOME_UNKNOWN",
            None
        )));
        assert!(!after(&status(
            Code::Unavailable,
            "DATABASE_UNAVAILABLE",
            None
        )));
        assert!(!after(&status(Code::Unavailable, "SHUTTING_DOWN", None)));
        assert!(after(&Status::unavailable("a proxy says so")));
        assert!(after(&status(Code::Internal, "INTERNAL", None)));
        assert!(after(&Status::deadline_exceeded("Deadline Exceeded")));
        assert!(after(&Status::resource_exhausted("a proxy's limit")));
        assert!(!after(&Status::unauthenticated("no token")));
        assert!(!after(&Status::permission_denied("a proxy says so")));
        assert!(!after(&Status::unimplemented("another server")));
        assert!(!after(&Status::resource_exhausted(
            "SERVER: Received message larger than max (9 vs. 8)"
        )));
        // The response was too large: the call was executed.
        let decoded =
            "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        let error = Error::from_status(&Status::out_of_range(decoded));
        assert!(error.maybe_written());
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert_eq!(error.reason(), Some(ErrorReason::AnswerTooLarge));
        assert_eq!(error.metadata()["limit_bytes"], "8");
    }

    #[test]
    fn what_is_transient() {
        let transient =
            |code, reason| Error::from_status(&status(code, reason, None)).is_transient();
        assert!(transient(Code::Aborted, "TRANSACTION_CONFLICT"));
        assert!(transient(Code::Aborted, "ROW_LOCKED"));
        assert!(transient(Code::ResourceExhausted, "POOL_EXHAUSTED"));
        assert!(transient(Code::Unavailable, "SHUTTING_DOWN"));
        assert!(!transient(Code::Aborted, "REVISION_MISMATCH"));
        assert!(!transient(Code::ResourceExhausted, "DATABASE_FULL"));
        assert!(!transient(Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
        assert!(Error::from_status(&Status::cancelled("by a proxy")).is_transient());
        assert!(!Error::from_status(&Status::resource_exhausted("quota")).is_transient());
    }
}
