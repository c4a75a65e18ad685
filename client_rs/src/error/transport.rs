//! Why a call failed whose status comes from gRPC itself or a proxy, without an `ErrorInfo`.

use tonic::Code;

use crate::v1::ErrorReason;

/// The reason that such a status means, and, if a message was too large, the limit. `None` for
/// the codes that only applications use.
pub(super) fn reason_of(code: Code, message: &str) -> Option<(ErrorReason, Option<String>)> {
    if let Some((reason, limit)) = too_large(code, message) {
        return Some((reason, Some(limit)));
    }
    let reason = match code {
        Code::DeadlineExceeded => ErrorReason::DeadlineExceeded,
        // Cancelled by the peer or a proxy: what this client cancels returns no status.
        Code::Unavailable | Code::Cancelled => ErrorReason::ServerUnreachable,
        Code::ResourceExhausted => ErrorReason::TransportLimit,
        Code::Unauthenticated => ErrorReason::Unauthenticated,
        Code::PermissionDenied => ErrorReason::PermissionDenied,
        Code::Unimplemented => ErrorReason::Unimplemented,
        Code::Internal | Code::Unknown | Code::DataLoss => ErrorReason::Internal,
        _ => return None,
    };
    Some((reason, None))
}

/// Which message exceeded which limit. Only the text distinguishes this from other limits.
fn too_large(code: Code, message: &str) -> Option<(ErrorReason, String)> {
    match code {
        // From this client's decoder: "decoded message length too large: found 9 bytes, the
        // limit is: 8 bytes".
        Code::OutOfRange => {
            let (_, rest) = message.split_once("decoded message length too large")?;
            let (_, limit) = rest.split_once("the limit is: ")?;
            Some((ErrorReason::AnswerTooLarge, number(limit)?))
        }
        // From gRPC's C core: "SERVER: Received message larger than max (9 vs. 8)". Without a
        // side, the server rejects what it received.
        Code::ResourceExhausted => {
            let (who, rest) = message.split_once(" message larger than max (")?;
            let (_, limit) = rest.split_once(" vs. ")?;
            let who = who.to_ascii_lowercase();
            let sent = who.ends_with("sent");
            if !sent && !who.ends_with("received") {
                return None;
            }
            let reason = if who.contains("client: ") == sent {
                ErrorReason::MessageTooLarge
            } else {
                ErrorReason::AnswerTooLarge
            };
            Some((reason, number(limit)?))
        }
        _ => None,
    }
}

/// The number at the beginning of a text.
fn number(text: &str) -> Option<String> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_grpc_makes_itself_has_a_reason() {
        for (code, expected) in [
            (Code::DeadlineExceeded, Some(ErrorReason::DeadlineExceeded)),
            (Code::Unavailable, Some(ErrorReason::ServerUnreachable)),
            (Code::Cancelled, Some(ErrorReason::ServerUnreachable)),
            (Code::ResourceExhausted, Some(ErrorReason::TransportLimit)),
            (Code::Unauthenticated, Some(ErrorReason::Unauthenticated)),
            (Code::PermissionDenied, Some(ErrorReason::PermissionDenied)),
            (Code::Unimplemented, Some(ErrorReason::Unimplemented)),
            (Code::Internal, Some(ErrorReason::Internal)),
            (Code::Unknown, Some(ErrorReason::Internal)),
            (Code::DataLoss, Some(ErrorReason::Internal)),
            (Code::NotFound, None),
            (Code::AlreadyExists, None),
            (Code::Aborted, None),
            (Code::FailedPrecondition, None),
            (Code::InvalidArgument, None),
            (Code::OutOfRange, None),
        ] {
            let reason = reason_of(code, "in words").map(|(reason, _)| reason);
            assert_eq!(reason, expected, "{code:?}");
        }
    }

    #[test]
    fn too_large_messages_are_told_apart_by_side() {
        let request = ErrorReason::MessageTooLarge;
        let response = ErrorReason::AnswerTooLarge;
        for (text, reason) in [
            (
                "SERVER: Received message larger than max (9 vs. 8)",
                request,
            ),
            ("Received message larger than max (9 vs. 8)", request),
            ("CLIENT: Sent message larger than max (9 vs. 8)", request),
            (
                "CLIENT: Received message larger than max (9 vs. 8)",
                response,
            ),
            ("SERVER: Sent message larger than max (9 vs. 8)", response),
            ("sent message larger than max (9 vs. 8)", response),
        ] {
            let found = reason_of(Code::ResourceExhausted, text);
            assert_eq!(found, Some((reason, Some("8".into()))), "{text}");
        }
        let decoder =
            "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert_eq!(
            reason_of(Code::OutOfRange, decoder),
            Some((response, Some("8".into())))
        );
        let other = "lost message larger than max (9 vs. 8)";
        assert_eq!(
            reason_of(Code::ResourceExhausted, other),
            Some((ErrorReason::TransportLimit, None))
        );
    }
}
