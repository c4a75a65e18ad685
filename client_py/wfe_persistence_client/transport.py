"""Why a call failed whose status comes from gRPC itself or a proxy, without an ErrorInfo."""

import re
from collections.abc import Mapping
from typing import Final

import grpc

#: The codes that gRPC and proxies make themselves. They never make the others: those are
#: for applications.
_REASONS: Final[Mapping[grpc.StatusCode, str]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    grpc.StatusCode.UNAVAILABLE: "SERVER_UNREACHABLE",
    # From the peer or a proxy; this client's own cancellations never arrive as a status.
    grpc.StatusCode.CANCELLED: "SERVER_UNREACHABLE",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "TRANSPORT_LIMIT",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.UNIMPLEMENTED: "UNIMPLEMENTED",
    grpc.StatusCode.INTERNAL: "INTERNAL",
    grpc.StatusCode.UNKNOWN: "INTERNAL",
    grpc.StatusCode.DATA_LOSS: "INTERNAL",
}

# Only the text tells a message beyond a limit from other limits, and which message it was.
_TOO_LARGE: Final = re.compile(
    r"(?:(CLIENT|SERVER): )?(received|sent) message larger than max \(\d+ vs\. (\d+)\)",
    re.IGNORECASE,
)

# HTTP/2's REFUSED_STREAM: "processing has not begun". Proxies send it when they are full or stop.
_REFUSED: Final = re.compile(r"RST_STREAM with error code 7\b")


#: What grpcio makes of a stream that has ended while a request was being sent, whatever it ended
#: with.
ENDED_WHILE_SENDING: Final = "Internal error from Core"


def is_refused(status: grpc.StatusCode, details: str) -> bool:
    """Whether the peer says that it has not begun the call."""
    return status is grpc.StatusCode.UNAVAILABLE and _REFUSED.search(details) is not None


def reason_of(status: grpc.StatusCode, details: str) -> tuple[str, dict[str, str]]:
    """The name of an `ErrorReason` and its metadata; empty for the codes of applications."""
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and (found := _TOO_LARGE.search(details)):
        side, verb, limit = found.groups()
        # Without a side, it is a server that refuses what it received.
        request = ((side or "SERVER").upper() == "CLIENT") == (verb.lower() == "sent")
        reason = "MESSAGE_TOO_LARGE" if request else "ANSWER_TOO_LARGE"
        return reason, {"limit_bytes": limit}
    if status is grpc.StatusCode.INTERNAL and details == ENDED_WHILE_SENDING:
        return "SERVER_UNREACHABLE", {}
    return _REASONS.get(status, ""), {}
