"""Settings of operation: how the server stops, and what it logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wfe_persistence.settings.setting import About


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How many processes serve."""

    workers: Annotated[
        str,
        About(
            "Processes that serve calls, each on one core and with limits, database connections "
            "and memory of its own; auto: one for each core. More than one need Linux.",
            metavar="N|auto",
        ),
    ] = "1"


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """How the server stops."""

    drain_delay: Annotated[
        float | None,
        About(
            "Time at shutdown to go on answering while health is NOT_SERVING already, so that load "
            "balancers send new clients elsewhere (seconds).",
            default_help="3, or 0 if --listen is a loopback address or a Unix socket",
            minimum=0,
        ),
    ] = None
    drain_seconds: Annotated[
        float,
        About(
            "Time for calls in progress to finish at shutdown, after --drain-delay (seconds); then "
            "they are UNAVAILABLE.",
            above=0,
        ),
    ] = 5.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The sweep: work that hosts have lost is enqueued again."""

    sweep_seconds: Annotated[
        float | None,
        About(
            "How often to look for due workflows and unprocessed events that have been in no queue "
            "for that long, and enqueue them: in every queue of the kind WORKFLOW, or EVENT "
            "(ConfigureQueue). With several servers one of them looks (seconds).",
            default_help="never",
            minimum=1,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Retention: what is old enough is deleted, where a policy says so."""

    retention_seconds: Annotated[
        float,
        About(
            "How often to look for what the retention policies of the namespaces let go "
            "(SetRetentionPolicy), and delete it. Without a policy nothing is deleted. 0: this "
            "server deletes nothing by itself (seconds).",
            minimum=0,
        ),
    ] = 300.0
    retention_rows_per_second: Annotated[
        int,
        About(
            "How many rows this server deletes at most because of retention policies, on average "
            "over some seconds.",
            minimum=1,
        ),
    ] = 1000


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Traces of calls."""

    traces: Annotated[
        str,
        About(
            "Where spans of calls go. otlp: to a collector of OpenTelemetry, as the standard "
            "variables OTEL_* say; needs the extra otel.",
            choices=("off", "otlp"),
        ),
    ] = "off"


@dataclass(frozen=True, kw_only=True)
class Transfers:
    """Exports, imports and moves of namespaces."""

    max_transfers: Annotated[
        int,
        About(
            "Maximum number of exports, and of imports, at a time in each worker process; each "
            "takes a database connection beside --pool-size. Further ones are refused with "
            "ADMINISTRATION_BUSY.",
            minimum=1,
        ),
    ] = 2
    export_seconds: Annotated[
        float,
        About(
            "Longest time that an export may take. Until its end PostgreSQL does not remove what "
            "was deleted meanwhile (seconds).",
            above=0,
        ),
    ] = 21_600.0
    move_grace: Annotated[
        float,
        About(
            "How long a namespace's schema is kept in its old database, under another name, after "
            "the namespace was moved to another one (seconds).",
            minimum=0,
        ),
    ] = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Logs:
    """What the server logs, and where."""

    audit_log: Annotated[
        str,
        About(
            "File for a line of JSON about every write and every refused call: who, what, outcome, "
            "without payloads; - is stdout. Opened again on SIGHUP and when it was renamed.",
            metavar="FILE|-",
            default_help="none",
        ),
    ] = ""
    slow_call: Annotated[
        float,
        About(
            "Calls that take longer than this (seconds) are logged as warnings, with what took the "
            "time; of each method at most one a minute. 0: none are.",
            minimum=0,
        ),
    ] = 1.0
    log_level: Annotated[
        str,
        About(
            "Minimum level of log messages, which go to stderr.",
            choices=("debug", "info", "warning", "error"),
        ),
    ] = "info"
    log_format: Annotated[
        str,
        About(
            "Log format. auto: text on a terminal, otherwise JSON, one object per line.",
            choices=("auto", "text", "json"),
        ),
    ] = "auto"
