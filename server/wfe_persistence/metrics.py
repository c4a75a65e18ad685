"""What the server counts. Every layer may report here; `http/metrics.py` shows it to Prometheus.

The numbers are plain Python objects, because a count must cost next to nothing: prometheus-client
takes a lock for each. So they may be changed on the event loop only; others may read them. They
belong to the process: the numbers of several processes are to be added.

Names and units follow the rules of Prometheus. The labels of a metric have few values: the methods,
the codes, the statements; never anything that a caller chooses.

(Longer than 450 lines, as it is a catalogue: each metric once, with its help.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

Labels = tuple[str, ...]
"""The values of a metric's labels, in their order."""

PREFIX: Final = "wfe_persistence_"

_CALL: Final = ("grpc_type", "grpc_service", "grpc_method")

# Seconds.
_CALL_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Counter:
    """Numbers that only grow, one for each combination of labels."""

    name: str
    help: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, labels: Labels = (), by: float = 1) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0) + by


@dataclass(slots=True, eq=False)
class Gauge:
    """Numbers that go up and down: counted with `add`, or looked up by `read` when they are
    needed."""

    name: str
    help: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)
    read: Callable[[], Iterable[tuple[Labels, float]]] | None = None
    over: Literal["sum", "min", "max"] = "sum"
    """What the number of several worker processes is (`--workers`)."""

    def add(self, labels: Labels = (), by: float = 1) -> None:
        """Count up, or down."""
        self.values[labels] = self.values.get(labels, 0) + by

    def current(self) -> Sequence[tuple[Labels, float]]:
        """The numbers now."""
        return list(self.values.items() if self.read is None else self.read())


@dataclass(slots=True, eq=False)
class Distribution:
    """How many values there were up to each bound and in all, and their sum."""

    counts: list[int]
    """Those up to each bound but above the one before; those above all bounds last."""
    sum: float = 0.0


@dataclass(slots=True, eq=False)
class Histogram:
    """Distributions of values, one for each combination of labels."""

    name: str
    help: str
    labels: Labels
    bounds: tuple[float, ...]
    values: dict[Labels, Distribution] = field(default_factory=dict)

    def of(self, labels: Labels = ()) -> Distribution:
        """The distribution of a combination of labels."""
        found = self.values.get(labels)
        if found is None:
            found = self.values[labels] = Distribution([0] * (len(self.bounds) + 1))
        return found

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count a value."""
        distribution = self.of(labels)
        distribution.counts[bisect_left(self.bounds, value)] += 1
        distribution.sum += value


Metric = Counter | Gauge | Histogram
M = TypeVar("M", Counter, Gauge, Histogram)

METRICS: Final[list[Metric]] = []
"""All metrics of the server's own, in the order of their declaration."""


def _declared(metric: M) -> M:
    METRICS.append(metric)
    # So that what has not happened yet is 0, and not absent.
    if not metric.labels:
        if isinstance(metric, Histogram):
            metric.of()
        elif isinstance(metric, Counter):
            metric.add(by=0)
    return metric


# ----- calls; the first names are those of the gRPC middleware that etcd and SpiceDB use -----

CALLS: Final = _declared(
    Counter(
        "grpc_server_handled_total",
        "Calls that have ended, by their status code. CANCELLED: their client has hung up.",
        (*_CALL, "grpc_code"),
    )
)
CALL_SECONDS: Final = _declared(
    Histogram(
        "grpc_server_handling_seconds",
        "How long calls took, from their arrival to their end.",
        _CALL,
        _CALL_BOUNDS,
    )
)
CALLS_IN_PROGRESS: Final = _declared(
    Gauge(f"{PREFIX}calls_in_progress", "Calls that have not ended yet.", _CALL)
)
RECEIVED_BYTES: Final = _declared(
    Counter(
        f"{PREFIX}received_bytes_total", "Size of the requests that were received, encoded.", _CALL
    )
)
SENT_BYTES: Final = _declared(
    Counter(f"{PREFIX}sent_bytes_total", "Size of the responses that were sent, encoded.", _CALL)
)
CALL_ERRORS: Final = _declared(
    Counter(
        f"{PREFIX}call_errors_total",
        "Calls that have failed, by the reason in their ErrorInfo: refused for access "
        "(ACCESS_DENIED, CREDENTIALS_INVALID, …), for limits (CALLER_LIMITED, NAMESPACE_FULL, "
        "TOO_MANY_CALLS, …), and all others.",
        ("reason",),
    )
)

BULK_ITEMS: Final = _declared(
    Counter(
        f"{PREFIX}bulk_items_total",
        "Items of streams of bulk requests, by what they were answered with: OK, or the reason for "
        "which they were refused.",
        ("grpc_method", "reason"),
    )
)

# ----- the database -----

_ROUND_TRIP_BOUNDS: Final = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

STATEMENT_SECONDS: Final = _declared(
    Histogram(
        f"{PREFIX}database_round_trip_seconds",
        "Round trip of a statement to the database, from sending it to the last of its result, by "
        "its name in the server's code. Of several in one transaction, the last counts.",
        ("statement",),
        _ROUND_TRIP_BOUNDS,
    )
)
RETRIES: Final = _declared(
    Counter(
        f"{PREFIX}database_retries_total",
        "Statements that were run again, by the SQLSTATE of the error, or connection_lost.",
        ("reason",),
    )
)
DATABASE_ERRORS: Final = _declared(
    Counter(
        f"{PREFIX}database_errors_total",
        "Errors of statements, also of those that were run again, by the class of their SQLSTATE.",
        ("sqlstate_class",),
    )
)
DEADLOCKS: Final = _declared(
    Counter(
        f"{PREFIX}deadlocks_total",
        "Statements that PostgreSQL ended because of a deadlock (SQLSTATE 40P01).",
    )
)
POOL_WAIT: Final = _declared(
    Histogram(
        f"{PREFIX}pool_wait_seconds",
        "How long calls waited for a database connection, those that got none included.",
        (),
        _ROUND_TRIP_BOUNDS,
    )
)
POOL_WAITING: Final = _declared(
    Gauge(
        f"{PREFIX}pool_waiting_calls",
        "Calls that wait for a connection to a database, by its name; `home` is that of --db-url.",
        ("database",),
    )
)
POOL_CONNECTIONS: Final = _declared(
    Gauge(
        f"{PREFIX}pool_connections",
        "Connections of the pool of a database, by state: in_use or idle.",
        ("database", "state"),
    )
)
POOL_MAX: Final = _declared(
    Gauge(
        f"{PREFIX}pool_max_connections",
        "Most connections of the pool of a database (--pool-size).",
        ("database",),
    )
)
PREPARED: Final = _declared(
    Gauge(
        f"{PREFIX}prepared_statements",
        "Statements that are prepared on the connections of the pool of a database, all together.",
        ("database",),
    )
)
DATABASE_REACHABLE: Final = _declared(
    Gauge(
        f"{PREFIX}postgres_reachable",
        "Whether connections to a database can be made (1), or calls to it fail at once (0).",
        ("database",),
        over="min",
    )
)

# ----- replicas (`--db-read-url`); without, there are none -----

_REPLICA: Final = ("standby",)

REPLICA_LAG_BYTES: Final = _declared(
    Gauge(
        f"{PREFIX}replica_lag_bytes",
        "How much WAL a replica has not replayed yet, as last seen (4 times a second).",
        _REPLICA,
        over="max",
    )
)
REPLICA_LAG_SECONDS: Final = _declared(
    Gauge(
        f"{PREFIX}replica_lag_seconds",
        "How stale a replica may be: how long ago everything had been committed that it is known "
        "to have. About 0.3 s if it keeps up.",
        _REPLICA,
        over="max",
    )
)
REPLICA_USABLE: Final = _declared(
    Gauge(
        f"{PREFIX}replica_usable",
        "Whether reads may use a replica (1), or it is left out because it lags, does not answer "
        "or is no standby (0).",
        _REPLICA,
        over="min",
    )
)
REPLICA_READS: Final = _declared(
    Counter(
        f"{PREFIX}replica_reads_total",
        "Calls that were to read from a replica, by what they have read from: replica; or the "
        "primary, because the replica had not replayed in time what the call relies on (behind), "
        "or did not answer (failed), or because there was none to be used (none; the label is the "
        "database).",
        ("standby", "outcome"),
    )
)

# ----- claims: of a subscription, a command, a lock or a queue_item -----

CLAIMS_TAKEN: Final = _declared(
    Counter(f"{PREFIX}claims_taken_total", "Claims that were granted.", ("kind",))
)
CLAIMS_RENEWED: Final = _declared(
    Counter(f"{PREFIX}claims_renewed_total", "Claims that were extended.", ("kind",))
)
CLAIMS_LOST: Final = _declared(
    Counter(
        f"{PREFIX}claims_lost_total",
        "Claims that calls relied on although they were no longer held: expired, released, or "
        "taken by others.",
        ("kind",),
    )
)

# ----- the sweep (`--sweep-seconds`) -----

SWEPT: Final = _declared(
    Counter(
        f"{PREFIX}swept_total",
        "Due workflows and unprocessed events that were in no queue, and that the sweep of this "
        "server has enqueued again, by kind: workflow or event.",
        ("kind",),
    )
)

# ----- retention (SetRetentionPolicy) -----

RETENTION_DELETED: Final = _declared(
    Counter(
        f"{PREFIX}retention_deleted_rows_total",
        "Rows that this server has deleted because a retention policy says so, by kind: workflows, "
        "execution_pointers, subscriptions, events, errors or commands.",
        ("kind",),
    )
)
RETENTION_BUDGET: Final = _declared(
    Gauge(
        f"{PREFIX}retention_budget_rows",
        "Rows that a retention policy deletes in a second at most (--retention-rows-per-second), "
        "where this server applies any.",
        over="max",
    )
)

# ----- waiting -----

WAITERS: Final = _declared(
    Gauge(f"{PREFIX}waiting_calls", "Calls that wait for what others do, without a connection.")
)

LISTENING: Final = _declared(
    Gauge(
        f"{PREFIX}listening",
        "Whether other servers can tell this one what they write (1), or it looks for that itself "
        "twice a second (0).",
        over="min",
    )
)
NOTIFICATIONS: Final = _declared(
    Counter(
        f"{PREFIX}notifications_total",
        "Notifications that were sent to other servers, and received from them.",
        ("direction",),
    )
)

# ----- the process -----

LOOP_LAG: Final = _declared(
    Histogram(
        f"{PREFIX}event_loop_lag_seconds",
        "How much later than planned the event loop runs what is due, looked at 4 times a second.",
        (),
        (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    )
)
SERVING: Final = _declared(
    Gauge(
        f"{PREFIX}serving",
        "Whether the server as a whole is SERVING (1) or not (0), as its health says.",
        over="min",
    )
)
NAMESPACES_LOADED: Final = _declared(
    Gauge(
        f"{PREFIX}namespaces_loaded",
        "Namespaces that the server has looked up and remembers.",
        over="max",
    )
)

# ----- the worker processes (`--workers`); without, there are none -----

WORKERS: Final = _declared(
    Gauge(f"{PREFIX}workers", "Worker processes by state: ready or not_ready.", ("state",))
)
WORKER_MEMORY: Final = _declared(
    Gauge(
        f"{PREFIX}process_resident_memory_bytes",
        "Resident memory of each worker process; that of the supervisor is not in it.",
        ("worker",),
    )
)
WORKER_RESTARTS: Final = _declared(
    Counter(
        f"{PREFIX}worker_restarts_total",
        "Worker processes that were started because another had ended.",
    )
)

# ----- what is in the stores, looked at once a minute (`store/statistics.py`) -----

_OF_STORE: Final = ("namespace",)


def _of_store(name: str, help_: str, *labels: str) -> Gauge:
    return _declared(Gauge(f"{PREFIX}store_{name}", help_, (*_OF_STORE, *labels), over="max"))


STORE_WORKFLOWS: Final = _of_store(
    "workflows", "Workflows by status; of each, at most 100,000 are counted.", "status"
)
STORE_RUNNABLE: Final = _of_store(
    "runnable_workflows",
    "Workflows that are due to be run; at most 100,000 are counted.",
)
STORE_OLDEST_RUNNABLE: Final = _of_store(
    "oldest_runnable_age_seconds",
    "For how long a workflow has been due that nobody has written since, of the first 1,000 that "
    "are due the longest one; 0: none is due.",
)
STORE_EVENTS: Final = _of_store(
    "unprocessed_events", "Events that are not processed; at most 100,000 are counted."
)
STORE_SUBSCRIPTIONS: Final = _of_store(
    "subscriptions",
    "Event subscriptions by state: open or held; at most 100,000 are looked at.",
    "state",
)
STORE_COMMANDS: Final = _of_store(
    "commands",
    "Scheduled commands by state: due, scheduled for later, or leased; at most 100,000 are looked "
    "at.",
    "state",
)
STORE_QUEUE_ITEMS: Final = _of_store(
    "queue_items",
    "Items of queues by state: waiting, delayed, leased or dead; at most 100,000 are looked at.",
    "state",
)
STORE_TABLE_BYTES: Final = _of_store("data_bytes", "Size of tables without indexes.", "table")
STORE_INDEX_BYTES: Final = _of_store("index_bytes", "Size of tables' indexes.", "table")
STORE_DEAD_ROWS: Final = _of_store(
    "dead_rows", "Rows that wait for a vacuum, as PostgreSQL estimates them.", "table"
)
STORE_SCHEMA_VERSION: Final = _of_store(
    "schema_version", "The number of the newest migration that was applied."
)
STORE_LOOKED: Final = _of_store(
    "last_look_timestamp_seconds", "When the numbers of the store were counted (Unix time)."
)
STORE_LOOKS_FAILED: Final = _declared(
    Counter(
        f"{PREFIX}store_looks_failed_total",
        "How often the numbers of a store could not be counted within 5 s.",
    )
)
