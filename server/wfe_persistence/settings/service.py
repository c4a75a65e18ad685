"""Settings of the service: which RPCs are enabled, and how calls are limited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wfe_persistence.settings.setting import About


@dataclass(frozen=True, kw_only=True)
class Rpcs:
    """RPCs that not every server has."""

    allow_create_namespace: Annotated[
        bool | None,
        About(
            "Enable the CreateNamespace RPC.",
            default_help="enabled if --listen is a loopback address or a Unix socket",
        ),
    ] = None
    max_namespaces: Annotated[
        int,
        About(
            "Maximum number of namespaces, besides `default`, that CreateNamespace may lead to.",
            minimum=1,
        ),
    ] = 1000
    allow_delete_namespace: Annotated[bool, About("Enable the DeleteNamespace RPC.")] = False
    allow_truncate: Annotated[bool, About("Enable the TruncateAll RPC.")] = False
    reflection: Annotated[
        bool | None,
        About(
            "Enable gRPC server reflection, for callers that are authenticated if they have to be.",
            default_help="enabled if --listen is a loopback address or a Unix socket",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Limits of calls."""

    max_message_bytes: Annotated[
        int,
        About(
            "Maximum size of a request and of a stored workflow (bytes). Clients must be "
            "configured to receive messages of this size.",
            minimum=8192,  # a header's fields that have bounds may have half of it
            # gRPC and libpq count bytes in 32 bits, and the server receives twice this size to
            # refuse it with a reason.
            maximum=512 * 1024 * 1024 - 1,
        ),
    ] = 4 * 1024 * 1024
    max_request_mb: Annotated[
        int,
        About(
            "Memory for requests (MB): half for those being received, half for those in progress. "
            "More large requests at a time wait or are refused.",
            minimum=1,
        ),
    ] = 128
    max_calls: Annotated[
        int,
        About(
            "Maximum number of calls in progress. Calls that wait for what others do do not count, "
            "up to four times as many.",
            minimum=1,
        ),
    ] = 4000
    max_bulk_streams: Annotated[
        int,
        About(
            "Maximum number of streams of CreateWorkflows and CreateEvents at a time in each "
            "worker process, and of one namespace three quarters of them; further ones are "
            "refused. Each may receive a request beside the memory for requests.",
            minimum=1,
        ),
    ] = 16
    max_calls_per_connection: Annotated[
        int,
        About(
            "Maximum number of calls in progress over one client connection. Increase behind a "
            "proxy that combines many clients' calls in one connection.",
            minimum=1,
        ),
    ] = 1000
    default_deadline: Annotated[
        float, About("Deadline for calls that set none (seconds).", above=0)
    ] = 30.0
    max_deadline: Annotated[
        float,
        About(
            "Maximum deadline (seconds). A call that sets a later one, or none, ends after this "
            "time.",
            above=0,
        ),
    ] = 300.0
    stall_seconds: Annotated[
        float,
        About("Time for a client to read on before its stream is ended (seconds).", above=0),
    ] = 30.0
    lifecycle_retention: Annotated[
        float,
        About(
            "Time for which lifecycle events are kept for watchers that resume (seconds).", above=0
        ),
    ] = 86_400.0
    watch_retention: Annotated[
        float,
        About(
            "Time for which changes of workflows are kept for watchers that resume, and are still "
            "recorded when nobody watches any more (seconds).",
            above=0,
        ),
    ] = 86_400.0
