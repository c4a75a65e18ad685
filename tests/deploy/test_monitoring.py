"""The dashboard and the alert rules: every query is valid, and asks for metrics and labels that the
server has."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.waiting import wait_for
from wfe.persistence.v1.queue_pb2 import EnqueueRequest
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest, GetWorkflowInstanceRequest
from wfe_persistence.metrics import METRICS, Histogram
from wfe_persistence.rpc.services import SERVICES

MONITORING: Final = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD: Final = json.loads((MONITORING / "dashboard.json").read_text())
RULES: Final = yaml.safe_load((MONITORING / "alerts.yaml").read_text())

# What Prometheus adds to each time series.
ADDED: Final = {"job", "instance"}

# What every Python process has.
PROCESS: Final[dict[str, set[str]]] = {
    "process_cpu_seconds_total": set(), "process_resident_memory_bytes": set(),
}  # fmt: skip


def labels_by_name() -> dict[str, set[str]]:
    """The time series that there are, and the labels of each."""
    found = dict(PROCESS)
    for metric in METRICS:
        if isinstance(metric, Histogram):
            found[f"{metric.name}_bucket"] = {*metric.labels, "le"}
            found[f"{metric.name}_sum"] = found[f"{metric.name}_count"] = set(metric.labels)
        else:
            found[metric.name] = set(metric.labels)
    return found


LABELS: Final = labels_by_name()


def queries() -> list[str]:
    """All queries, as Grafana and Prometheus would run them."""
    of_panels = [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
    ]
    of_rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    assert len(of_panels) > 20
    assert len(of_rules) > 5
    return [query.replace("$__rate_interval", "5m") for query in (*of_panels, *of_rules)]


def nodes(node: Any) -> Iterator[Any]:
    """A query's node and all below it."""
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from nodes(child)
    for child in getattr(node, "args", None) or ():
        yield from nodes(child)


def faults(query: str) -> list[str]:
    """What is wrong with a query."""
    wrong = []
    known: set[str] = set()
    tree = list(nodes(promql_parser.parse(query)))
    for node in tree:
        if isinstance(node, promql_parser.VectorSelector):
            if node.name not in LABELS:
                wrong.append(f"no metric {node.name}")
                continue
            known |= LABELS[node.name] | ADDED
            for matcher in node.matchers.matchers:
                if matcher.name not in LABELS[node.name] | ADDED:
                    wrong.append(f"{node.name} has no label {matcher.name}")
                wrong += value_faults(matcher.name, matcher.value)
    for node in tree:
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            wrong += [f"no label {label}" for label in modifier.labels if label not in known]
    return wrong


def value_faults(label: str, value: str) -> list[str]:
    """Values of labels that there are not."""
    methods = {rpc.name for service in SERVICES for rpc in service.descriptor.methods}
    values = {"grpc_code": {code.name for code in grpc.StatusCode}, "grpc_method": methods}
    if label not in values:
        return []
    return [f"no {label} {each}" for each in value.split("|") if each not in values[label]]


@pytest.mark.parametrize("query", queries())
def test_query(query: str) -> None:
    assert faults(query) == []


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("sum(wfe_persistence_no_such_total)", "no metric wfe_persistence_no_such_total"),
        ('grpc_server_handled_total{code="OK"}', "grpc_server_handled_total has no label code"),
        ('grpc_server_handled_total{grpc_code="Ok"}', "no grpc_code Ok"),
        ('grpc_server_handled_total{grpc_method=~"Dequeue|Get"}', "no grpc_method Get"),
        ("sum by (queue) (grpc_server_handled_total)", "no label queue"),
    ],
)
def test_a_fault_is_noticed(query: str, fault: str) -> None:
    assert faults(query) == [fault]


def test_variables_of_the_dashboard() -> None:
    variables = DASHBOARD["templating"]["list"]
    names = {variable["name"] for variable in variables}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} <= names
    asked = [v["query"]["query"] for v in variables if isinstance(v["query"], dict)]
    metrics = {query.partition("(")[2].split("{")[0].split(",")[0] for query in asked}
    assert metrics <= {*LABELS, "wfe_persistence_build_info"}


def test_templates_of_alerts_name_labels_of_their_results() -> None:
    for rule in (rule for group in RULES["groups"] for rule in group["rules"]):
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
        names = re.findall(r"wfe_persistence_\w+", rule["expr"])
        kept = set(grouped[1].split(", ")) if grouped else LABELS[names[0]] | ADDED
        assert named <= kept, rule["alert"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


async def test_a_server_has_what_they_ask_for(tmp_path: Path, database_url: str) -> None:
    with AdminServer(tmp_path / "log", "--db-url", database_url, "--sweep-seconds", "60") as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            created = await api.workflows.CreateNewWorkflow(
                CreateNewWorkflowRequest(instance=make.instance())
            )
            await api.workflows.GetWorkflowInstance(GetWorkflowInstanceRequest(id=created.id))
            await api.queues.Enqueue(EnqueueRequest(items=[make.item(make.queue())]))
        await asyncio.to_thread(wait_for_store, server)
        scraped = {
            sample.name: set(sample.labels)
            for family in text_string_to_metric_families(server.get("/metrics").text)
            for sample in family.samples
        }
    # Of those that count what hardly happens there is no sample before it has.
    seldom = {
        f"wfe_persistence_{name}_total"
        for name in ("call_errors", "claims_lost", "database_errors", "database_retries")
    }
    asked = {
        str(node.name)
        for query in queries()
        for node in nodes(promql_parser.parse(query))
        if isinstance(node, promql_parser.VectorSelector)
    }
    assert asked - seldom <= scraped.keys()
    for name in asked - seldom:
        assert scraped[name] == LABELS[name], name


def wait_for_store(server: AdminServer) -> None:
    """Until the numbers of the store have been counted."""
    wait_for(lambda: "wfe_persistence_store_workflows{" in server.get("/metrics").text)
