"""What each alert fires at, and what it leaves alone, for promtool.

Values are those of promtool, a minute apart: `0+60x10` is 0, 60, … 600.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Fires:
    """A firing alert: its labels, besides its name and severity, and its summary."""

    labels: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class Case:
    """Time series, and whether the alert fires `at` that minute."""

    series: Mapping[str, str]
    at: int
    fires: Fires | None = None


def _handled(code: str, method: str = "Enqueue", instance: str = "a") -> str:
    return (
        f'grpc_server_handled_total{{job="wfe",instance="{instance}",grpc_method="{method}",'
        f'grpc_code="{code}"}}'
    )


def _buckets(metric: str, fast: str, slow: str) -> dict[str, str]:
    """A histogram of `a`: how many values were up to 0.01 s, and how many in all."""
    where = 'job="wfe",instance="a"'
    return {
        f'{metric}_bucket{{{where},le="0.01"}}': fast,
        f'{metric}_bucket{{{where},le="2.5"}}': slow,
        f'{metric}_bucket{{{where},le="+Inf"}}': slow,
    }


_ROUND_TRIP: Final = "wfe_persistence_database_round_trip_seconds"
_LAG: Final = "wfe_persistence_event_loop_lag_seconds"
_SERVER: Final = {"job": "wfe", "instance": "a"}
_STORE: Final = {"job": "wfe", "namespace": "prod"}
_OF: Final = 'job="wfe",instance="a"'
_IN: Final = 'job="wfe",instance="a",namespace="prod"'

_BUG: Final = Fires(
    {"job": "wfe", "grpc_method": "Enqueue", "grpc_code": "INTERNAL"},
    "Enqueue ended with INTERNAL, which is a bug of the server",
)

CASES: Final[Mapping[str, tuple[Case, ...]]] = {
    "WfePersistenceBug": (
        # There is no series before the first bug.
        Case({_handled("INTERNAL"): "_x5 1x20", _handled("OK"): "0+9x30"}, 7, _BUG),
        Case({_handled("INTERNAL"): "3x15 4x20"}, 17, _BUG),
        Case({_handled("INTERNAL"): "1x60"}, 40),
        Case({_handled("UNAVAILABLE"): "0+9x30", _handled("OK"): "0+9x30"}, 20),
    ),
    "WfePersistenceNotServing": (
        Case({f"wfe_persistence_serving{{{_OF}}}": "1x5 0x10"}, 8,
             Fires(_SERVER, "a does not serve")),
        Case({f"wfe_persistence_serving{{{_OF}}}": "1x5 0 1x10"}, 8),
    ),
    "WfePersistenceDatabaseAway": (
        Case({f'wfe_persistence_postgres_reachable{{{_OF},database="far"}}': "1x5 0x10",
              f'wfe_persistence_postgres_reachable{{{_OF},database="home"}}': "1x20",
              f"wfe_persistence_serving{{{_OF}}}": "1x20"}, 8,
             Fires(_SERVER | {"database": "far"}, "a can't reach the database far, but others")),
        # Then it does not serve at all, which another alert says.
        Case({f'wfe_persistence_postgres_reachable{{{_OF},database="home"}}': "1x5 0x10",
              f"wfe_persistence_serving{{{_OF}}}": "1x5 0x20"}, 8),
    ),
    "WfePersistenceFailing": (
        Case({_handled("UNAVAILABLE"): "0+6x30", _handled("OK"): "0+54x30"}, 12,
             Fires({"job": "wfe"},
                   "10% of the calls fail: the server or its database is away or too slow")),
        Case({_handled("UNAVAILABLE"): "0+2x30", _handled("OK"): "0+58x30"}, 12),
        Case({_handled("NOT_FOUND"): "0+30x30", _handled("OK"): "0+30x30"}, 12),
    ),
    "WfePersistenceDatabaseSlow": (
        Case(_buckets(_ROUND_TRIP, "0+90x30", "0+100x30"), 20,
             Fires({"job": "wfe"}, "1 % of the statements take more than 2.251s")),
        Case(_buckets(_ROUND_TRIP, "0+100x30", "0+100x30"), 20),
    ),
    "WfePersistencePoolExhausted": (
        Case({f"wfe_persistence_pool_waiting_calls{{{_OF}}}": "3x30"}, 12,
             Fires(_SERVER, "Calls of a have waited for a database connection for minutes")),
        Case({f"wfe_persistence_pool_waiting_calls{{{_OF}}}": "3 3 0 3 3 3 0 3 3 3 0 3 3 3 0"}, 12),
    ),
    "WfePersistenceLoopLags": (
        Case(_buckets(_LAG, "0+90x30", "0+100x30"), 20,
             Fires(_SERVER, "The event loop of a is late by 2.251s")),
        Case(_buckets(_LAG, "0+100x30", "0+100x30"), 20),
    ),
    "WfePersistenceWorkflowsStuck": (
        Case({f"wfe_persistence_store_oldest_runnable_age_seconds{{{_IN}}}": "0+60x30"}, 20,
             Fires(_STORE, "A workflow of prod has been due for 20m 0s, and no host has run it")),
        Case({f"wfe_persistence_store_oldest_runnable_age_seconds{{{_IN}}}": "0+60x8 0x20"}, 20),
        Case({f"wfe_persistence_store_oldest_runnable_age_seconds{{{_IN}}}": "200x30"}, 20),
    ),
    "WfePersistenceDeadItems": (
        Case({f'wfe_persistence_store_queue_items{{{_IN},state="dead"}}': "2x5"}, 1,
             Fires(_STORE, "2 queue items of prod failed too often and are no longer handed out")),
        Case({f'wfe_persistence_store_queue_items{{{_IN},state="dead"}}': "0x5",
              f'wfe_persistence_store_queue_items{{{_IN},state="waiting"}}': "9x5"}, 1),
    ),
    "WfePersistenceWorkLost": (
        Case({f'wfe_persistence_swept_total{{{_OF},kind="workflow"}}': "0x9 3x60"}, 12,
             Fires({"job": "wfe", "kind": "workflow"},
                   "3 due pieces of work of the kind workflow were in no queue within an hour")),
        Case({f'wfe_persistence_swept_total{{{_OF},kind="workflow"}}': "0x9 3x200"}, 90),
        Case({f'wfe_persistence_swept_total{{{_OF},kind="event"}}': "0x90"}, 30),
    ),
    "WfePersistenceRetentionBehind": (
        Case({f'wfe_persistence_retention_deleted_rows_total{{{_OF},kind="events"}}': "0+57000x900",
              f"wfe_persistence_retention_budget_rows{{{_OF}}}": "1000x900"}, 480,
             Fires({"job": "wfe"}, "Retention has deleted as much as it may for hours, "
                   "now 950 rows per second")),
        # It was done after two hours.
        Case({f'wfe_persistence_retention_deleted_rows_total{{{_OF},kind="events"}}':
                  "0+57000x120 6840000x780",
              f"wfe_persistence_retention_budget_rows{{{_OF}}}": "1000x900"}, 480),
        Case({f'wfe_persistence_retention_deleted_rows_total{{{_OF},kind="events"}}': "0+6000x900",
              f"wfe_persistence_retention_budget_rows{{{_OF}}}": "1000x900"}, 480),
    ),
    "WfePersistenceDeadlocks": (
        Case({f"wfe_persistence_deadlocks_total{{{_OF}}}": "0x5 12x120"}, 62,
             Fires({"job": "wfe"},
                   "PostgreSQL ended 12 statements within an hour because of deadlocks")),
        Case({f"wfe_persistence_deadlocks_total{{{_OF}}}": "0x5 3x120"}, 62),
    ),
    "WfePersistenceNotVacuumed": (
        Case({f'wfe_persistence_store_dead_rows{{{_IN},table="events"}}': "2000000x60"}, 40,
             Fires(_STORE | {"table": "events"}, "events of prod has 2M dead rows")),
        Case({f'wfe_persistence_store_dead_rows{{{_IN},table="events"}}': "2000000x20 9x40"}, 40),
    ),
    "WfePersistenceNotCounted": (
        Case({f"wfe_persistence_store_looks_failed_total{{{_OF}}}": "0+1x60"}, 45,
             Fires(_SERVER, "a can't count what is in its store")),
        Case({f"wfe_persistence_store_looks_failed_total{{{_OF}}}": "0x30 4x60"}, 45),
    ),
}  # fmt: skip
