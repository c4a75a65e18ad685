"""The Grafana dashboard, the alert rules for Prometheus, and docs/monitoring.md about both.

All are generated, so that a metric has one name in them, and a panel shows what an alert is about.

(Longer than 450 lines, as it is a catalogue: panels, alerts, and what to do about them.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wfe_persistence.rpc.services import SERVICES

HERE: Final = Path(__file__).parent
RUNBOOK: Final = "docs/monitoring.md"

# The methods of calls that can wait: how long they take says nothing about the server.
WAITING: Final = "|".join(
    rpc.name
    for service in SERVICES
    for rpc in service.descriptor.methods
    if "wait" in rpc.input_type.fields_by_name
)

# Of all servers that the dashboard's variables choose.
ALL: Final = 'job=~"$job",instance=~"$instance"'
STORE: Final = 'job=~"$job",namespace=~"$namespace"'


@dataclass(frozen=True)
class Panel:
    """A graph: queries, each with the legend of its lines."""

    title: str
    help: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    stacked: bool = False


@dataclass(frozen=True)
class Alert:
    """A rule: when `expr` has had a result for so long, somebody is told."""

    name: str
    expr: str
    minutes: int
    severity: str
    summary: str
    remedy: str
    """What to look at; a sentence of docs/monitoring.md."""


def _quantile(metric: str, quantile: float, by: str = "", where: str = ALL) -> str:
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({quantile}, sum by ({labels}) "
        f"(rate({metric}_bucket{{{where}}}[$__rate_interval])))"
    )


def _rate(metric: str, by: str, where: str = ALL) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Calls": (
        Panel(
            "Calls", "Calls that have ended, by method.", "reqps",
            ((_rate("grpc_server_handled_total", "grpc_method"), "{{grpc_method}}"),),
            stacked=True,
        ),
        Panel(
            "Failed calls", "Calls that failed, by status code. INTERNAL and UNKNOWN are bugs.", "reqps",
            ((_rate("grpc_server_handled_total", "grpc_code", f'{ALL},grpc_code!="OK"'),
              "{{grpc_code}}"),),
            stacked=True,
        ),
        Panel(
            "Latency", "From the arrival of a call to its end; calls that wait and streams left out.", "s",
            tuple(
                (_quantile("grpc_server_handling_seconds", quantile, where=f'{ALL},grpc_type="unary",'
                           f'grpc_method!~"{WAITING}"'), name)
                for quantile, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
            ),
        ),
        Panel(
            "99 % latency by method", "The methods that take longest.", "s",
            ((f'topk(10, {_quantile("grpc_server_handling_seconds", 0.99, "grpc_method")})',
              "{{grpc_method}}"),),
        ),
        Panel(
            "Reasons", "Why calls failed, by the reason in their ErrorInfo.", "reqps",
            ((_rate("wfe_persistence_call_errors_total", "reason"), "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "Calls in progress", "Calls that have not ended, those that wait included.", "short",
            ((f"sum by (instance) (wfe_persistence_calls_in_progress{{{ALL}}})", "{{instance}}"),),
        ),
    ),
    "Database": (
        Panel(
            "Round trips", "Of statements, from sending to the last of the result.", "s",
            tuple(
                (_quantile("wfe_persistence_database_round_trip_seconds", quantile), name)
                for quantile, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
            ),
        ),
        Panel(
            "Statements", "By their name in the server's code.", "ops",
            ((f'topk(10, {_rate("wfe_persistence_database_round_trip_seconds_count", "statement")})',
              "{{statement}}"),),
            stacked=True,
        ),
        Panel(
            "Connections", "In use by all servers, of those that the pools may have.", "short",
            (
                (f'sum(wfe_persistence_pool_connections{{{ALL},state="in_use"}})', "in use"),
                (f"sum(wfe_persistence_pool_max_connections{{{ALL}}})", "at most"),
                (f"sum(wfe_persistence_pool_waiting_calls{{{ALL}}})", "waiting calls"),
            ),
        ),
        Panel(
            "Wait for a connection", "99 % of calls wait no longer.", "s",
            ((_quantile("wfe_persistence_pool_wait_seconds", 0.99, "instance"), "{{instance}}"),),
        ),
        Panel(
            "Errors", "By the class of their SQLSTATE, and what was run again.", "ops",
            (
                (_rate("wfe_persistence_database_errors_total", "sqlstate_class"),
                 "class {{sqlstate_class}}"),
                (_rate("wfe_persistence_database_retries_total", "reason"), "again: {{reason}}"),
            ),
        ),
        Panel(
            "Claims lost", "Claims that callers relied on but no longer held.", "ops",
            ((_rate("wfe_persistence_claims_lost_total", "kind"), "{{kind}}"),),
        ),
    ),
    "Store": (
        Panel(
            "Workflows", "By status, in all namespaces that are counted.", "short",
            ((f"sum by (status) (max by (namespace, status) (wfe_persistence_store_workflows{{{STORE}}}))",
              "{{status}}"),),
            stacked=True,
        ),
        Panel(
            "Runnable", "Workflows that are due and that nobody has run yet.", "short",
            ((f"max by (namespace) (wfe_persistence_store_runnable_workflows{{{STORE}}})",
              "{{namespace}}"),),
        ),
        Panel(
            "Age of the oldest", "For how long the workflow that is due first has been due.", "s",
            ((f"max by (namespace) (wfe_persistence_store_oldest_runnable_age_seconds{{{STORE}}})",
              "{{namespace}}"),),
        ),
        Panel(
            "Queues", "Items of all queues by state.", "short",
            ((f"sum by (state) (max by (namespace, state) (wfe_persistence_store_queue_items{{{STORE}}}))",
              "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Waiting for work", "Events, subscriptions and commands that are still open.", "short",
            (
                (f"sum(max by (namespace) (wfe_persistence_store_unprocessed_events{{{STORE}}}))",
                 "unprocessed events"),
                (f"sum by (state) (max by (namespace, state) "
                 f"(wfe_persistence_store_subscriptions{{{STORE}}}))", "subscriptions {{state}}"),
                (f"sum by (state) (max by (namespace, state) "
                 f"(wfe_persistence_store_commands{{{STORE}}}))", "commands {{state}}"),
            ),
        ),
        Panel(
            "Size", "Tables and indexes.", "bytes",
            (
                (f"sum by (table) (max by (namespace, table) (wfe_persistence_store_data_bytes{{{STORE}}}))",
                 "{{table}}"),
                (f"sum(max by (namespace, table) (wfe_persistence_store_index_bytes{{{STORE}}}))",
                 "all indexes"),
            ),
            stacked=True,
        ),
        Panel(
            "Dead rows", "What waits for a vacuum, as PostgreSQL estimates it.", "short",
            ((f"topk(10, max by (table) (wfe_persistence_store_dead_rows{{{STORE}}}))", "{{table}}"),),
        ),
        Panel(
            "Retention", "Rows that retention policies have deleted.", "rowsps",
            ((_rate("wfe_persistence_retention_deleted_rows_total", "kind"), "{{kind}}"),),
            stacked=True,
        ),
        Panel(
            "Swept", "Work that was in no queue, which the sweep has enqueued again. It should be none.",
            "short",
            ((f"sum by (kind) (increase(wfe_persistence_swept_total{{{ALL}}}[$__rate_interval]))",
              "{{kind}}"),),
        ),
    ),
    "Process": (
        Panel(
            "CPU", "Cores. A server is one event loop: it has one at most.", "short",
            ((f"rate(process_cpu_seconds_total{{{ALL}}}[$__rate_interval])", "{{instance}}"),),
        ),
        Panel(
            "Memory", "Resident.", "bytes",
            ((f"process_resident_memory_bytes{{{ALL}}}", "{{instance}}"),),
        ),
        Panel(
            "Event-loop lag", "99 % of what is due runs no later than that.", "s",
            ((_quantile("wfe_persistence_event_loop_lag_seconds", 0.99, "instance"), "{{instance}}"),),
        ),
        Panel(
            "Network", "Requests and responses, encoded.", "Bps",
            (
                (f"sum(rate(wfe_persistence_received_bytes_total{{{ALL}}}[$__rate_interval]))", "received"),
                (f"sum(rate(wfe_persistence_sent_bytes_total{{{ALL}}}[$__rate_interval]))", "sent"),
            ),
        ),
    ),
}  # fmt: skip

# Calls that ended because of a bug. There is no such series before the first one, of which
# `increase` sees nothing: it begins with 1.
_BUGS: Final = 'grpc_server_handled_total{grpc_code=~"INTERNAL|UNKNOWN"}'

ALERTS: Final = (
    Alert(
        "WfePersistenceBug",
        f"sum by (job, grpc_method, grpc_code) (increase({_BUGS}[10m]) > 0 "
        f"or ({_BUGS} unless {_BUGS} offset 10m))",
        0, "critical",
        "{{ $labels.grpc_method }} ended with {{ $labels.grpc_code }}, which is a bug of the server",
        "The log has a traceback at the time of the call. Report it.",
    ),
    Alert(
        "WfePersistenceNotServing",
        "min by (job, instance) (wfe_persistence_serving) == 0",
        2, "critical",
        "{{ $labels.instance }} does not serve",
        "`/readyz?verbose` and the log say why: the database is away, or the store has a schema "
        "version that this release can't use. (`up == 0` says that a server is gone; that rule is "
        "yours, because only you know its job.)",
    ),
    Alert(
        "WfePersistenceDatabaseAway",
        "min by (job, instance, database) (wfe_persistence_postgres_reachable) == 0"
        " and on (job, instance) min by (job, instance) (wfe_persistence_serving) == 1",
        2, "critical",
        "{{ $labels.instance }} can't reach the database {{ $labels.database }}, but others",
        "The namespaces in it fail, all others go on. The log says why, and ListNamespaces which those "
        "are.",
    ),
    Alert(
        "WfePersistenceFailing",
        'sum by (job) (rate(grpc_server_handled_total{grpc_code=~"UNAVAILABLE|DEADLINE_EXCEEDED"}[5m]))'
        " / sum by (job) (rate(grpc_server_handled_total[5m])) > 0.05",
        5, "critical",
        "{{ $value | humanizePercentage }} of the calls fail: the server or its database is away or too slow",
        "`/readyz?verbose` says what is wrong, and the log why, once. Then the panels Reasons, "
        "Connections and Round trips.",
    ),
    Alert(
        "WfePersistenceDatabaseSlow",
        "histogram_quantile(0.99, sum by (job, le) "
        "(rate(wfe_persistence_database_round_trip_seconds_bucket[5m]))) > 1",
        10, "warning",
        "1 % of the statements take more than {{ $value | humanizeDuration }}",
        "Statements shows which; `pg_stat_activity` and `pg_locks` of the database show what they "
        "wait for. A transaction left open holds up claims and vacuum.",
    ),
    Alert(
        "WfePersistencePoolExhausted",
        "min_over_time(wfe_persistence_pool_waiting_calls[5m]) > 0",
        5, "warning",
        "Calls of {{ $labels.instance }} have waited for a database connection for minutes",
        "If the database is slow, that is the cause. If it is idle, raise `--pool-size`, or start "
        "another server.",
    ),
    Alert(
        "WfePersistenceLoopLags",
        "histogram_quantile(0.99, sum by (job, instance, le) "
        "(rate(wfe_persistence_event_loop_lag_seconds_bucket[5m]))) > 0.5",
        10, "warning",
        "The event loop of {{ $labels.instance }} is late by {{ $value | humanizeDuration }}",
        "Its core is busy, or shared with too many others: start another server.",
    ),
    Alert(
        "WfePersistenceWorkflowsStuck",
        "max by (job, namespace) (wfe_persistence_store_oldest_runnable_age_seconds) > 300",
        10, "critical",
        "A workflow of {{ $labels.namespace }} has been due for {{ $value | humanizeDuration }}, "
        "and no host has run it",
        "Are hosts running? Else its queue item may be lost, or its definition known to no host: "
        "GetRunnableInstances lists which.",
    ),
    Alert(
        "WfePersistenceDeadItems",
        'max by (job, namespace) (wfe_persistence_store_queue_items{state="dead"}) > 0',
        0, "warning",
        "{{ $value }} queue items of {{ $labels.namespace }} failed too often and are no longer handed out",
        "ListQueueItems with the state DEAD shows them; RequeueItems hands them out again.",
    ),
    Alert(
        "WfePersistenceWorkLost",
        "sum by (job, kind) (increase(wfe_persistence_swept_total[1h])) > 0",
        0, "warning",
        "{{ $value | humanize }} due pieces of work of the kind {{ $labels.kind }} were in no queue within an hour",
        "The sweep has enqueued them again, so nothing is stuck, but late by `--sweep-seconds`. Hosts die "
        "between storing a workflow and enqueueing it, or take items from a queue without leases.",
    ),
    Alert(
        "WfePersistenceRetentionBehind",
        "sum by (job) (rate(wfe_persistence_retention_deleted_rows_total[1h])) "
        "> 0.8 * max by (job) (wfe_persistence_retention_budget_rows)",
        360, "warning",
        "Retention has deleted as much as it may for hours, now {{ $value | humanize }} rows per second",
        "More ends than is deleted, or a new policy catches up: `wfe-persistence retention show` tells "
        "when all was deleted last. Raise `--retention-rows-per-second`, if the database has room for it.",
    ),
    Alert(
        "WfePersistenceDeadlocks",
        "sum by (job) (increase(wfe_persistence_deadlocks_total[1h])) > 5",
        0, "warning",
        "PostgreSQL ended {{ $value | humanize }} statements within an hour because of deadlocks",
        "The server locks in one order, so something else writes these tables: PostgreSQL's log "
        "names both statements.",
    ),
    Alert(
        "WfePersistenceNotVacuumed",
        "max by (job, namespace, table) (wfe_persistence_store_dead_rows) > 1e6",
        30, "warning",
        "{{ $labels.table }} of {{ $labels.namespace }} has {{ $value | humanize }} dead rows",
        "Autovacuum does not keep up, or a transaction left open, a replication slot or a standby "
        "keeps it from removing them.",
    ),
    Alert(
        "WfePersistenceNotCounted",
        "increase(wfe_persistence_store_looks_failed_total[30m]) > 10",
        0, "warning",
        "{{ $labels.instance }} can't count what is in its store",
        "Counting has 5 s: the database is slow. The store's numbers are old.",
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    return {
        "__inputs": [],
        "uid": "wfe-persistence",
        "title": "WFE persistence",
        "tags": ["wfe"],
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "schemaVersion": 39,
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _variable("job", "label_values(wfe_persistence_build_info, job)"),
                _variable("instance", 'label_values(wfe_persistence_build_info{job=~"$job"}, instance)'),
                _variable(
                    "namespace",
                    'label_values(wfe_persistence_store_schema_version{job=~"$job"}, namespace)',
                ),
            ]
        },
        "panels": list(_panels()),
    }  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "allValue": ".*",
    }


def _panels() -> Iterator[dict[str, Any]]:
    width, height, y, number = 8, 8, 0, 0
    for title, panels in ROWS.items():
        number += 1
        at = {"x": 0, "y": y, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": at, "collapsed": False}
        y += 1
        for i, panel in enumerate(panels):
            number += 1
            x = i % 3 * width
            yield {
                "id": number,
                "type": "timeseries",
                "title": panel.title,
                "description": panel.help,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {
                    "defaults": {
                        "unit": panel.unit,
                        "min": 0,
                        "custom": {
                            "fillOpacity": 30 if panel.stacked else 0,
                            "stacking": {"mode": "normal" if panel.stacked else "none"},
                        },
                    },
                    "overrides": [],
                },
                "targets": [
                    {"refId": chr(ord("A") + n), "expr": expr, "legendFormat": legend}
                    for n, (expr, legend) in enumerate(panel.queries)
                ],
            }
            if x + width == 24:
                y += height
        y += height if len(panels) % 3 else 0


def rules() -> dict[str, Any]:
    """The rules, as Prometheus loads them."""
    return {
        "groups": [
            {
                "name": "wfe-persistence",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expr,
                        "for": f"{alert.minutes}m",
                        "labels": {"severity": alert.severity},
                        "annotations": {
                            "summary": alert.summary,
                            "description": alert.remedy,
                            "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
                        },
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }


def page() -> str:
    """docs/monitoring.md."""
    rows = "".join(
        f"| {title} | {', '.join(panel.title for panel in panels)} |\n"
        for title, panels in ROWS.items()
    )
    alerts = "".join(
        f"### {a.name}\n\n{a.severity.capitalize()}, {_after(a.minutes)}: {_plain(a.summary)}. {a.remedy}\n\n"
        f"```promql\n{a.expr}\n```\n\n"
        for a in ALERTS
    )
    return INTRODUCTION.format(rows=rows) + alerts.rstrip() + "\n"


def _after(minutes: int) -> str:
    return f"after {minutes} minutes" if minutes else "at once"


def _plain(template: str) -> str:
    """Without the templates of Prometheus: `{{ $labels.namespace }}` is NAMESPACE, a value is N."""
    named = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: found[1].upper(), template)
    return re.sub(r"{{ \$value[^}]*}}", "N", named)


INTRODUCTION: Final = """\
# Monitoring

<!-- Generated from deploy/monitoring/monitoring.py by `./run gen`. -->

[deploy/monitoring](../deploy/monitoring) has a dashboard for Grafana and alert rules for Prometheus, on the
[metrics](metrics.md) of the admin port. Import `dashboard.json` in Grafana; name `alerts.yaml` under
`rule_files:` of Prometheus. (JSON is YAML, so any YAML reader takes it.)

| row | panels |
|---|---|
{rows}
![The dashboard of a run of some minutes](monitoring.png)

The picture is not a screenshot of Grafana, of which no package was to be had where it was made: its lines are the
answers of a real Prometheus, which scraped two servers under traffic with some troubles (workflows in no queue, items
that fail, lost claims, broken connections), to the dashboard's queries. They are drawn by matplotlib, with the
places, titles and units of `dashboard.json`. `./run picture` makes it anew, in seven minutes. All servers and the
traffic shared two busy cores, so its times are not those of a server that has a machine.

`tests/deploy/test_prometheus.py` loads dashboard and rules into a Prometheus that scrapes a server: every query
of the dashboard finds data, and for each alert there are time series at which it fires, and others at which it does
not (`promtool test rules`).

## Alerts

"""

FILES: Final = {
    HERE / "dashboard.json": lambda: json.dumps(dashboard(), indent=2) + "\n",
    HERE / "alerts.yaml": lambda: json.dumps(rules(), indent=2) + "\n",
    HERE.parents[1] / "docs" / "monitoring.md": page,
}
