"""The dashboard and the alert rules in a real Prometheus, which scrapes a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.monitoring import monitoring
from tests.deploy import traffic
from tests.deploy.alert_cases import CASES, Case
from tests.support import binaries
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.binaries import Program
from tests.support.prometheus import RULES, Prometheus, promtool

# Prometheus may have to be fetched first, and must have scraped for a while.
pytestmark = pytest.mark.timeout(600)

JOB: Final = "wfe"
SCHEMA: Final = "monitored"
SET_OFF: Final = "WfePersistenceWorkLost"
"""The alert that the traffic sets off: it leaves workflows in no queue."""
ALERTS: Final = {alert.name: alert for alert in monitoring.ALERTS}


@pytest.fixture(scope="module")
def program() -> Program:
    try:
        return binaries.prometheus()
    except binaries.BinariesError as exc:
        pytest.skip(str(exc))


def test_the_rules_are_valid(program: Program) -> None:
    code, said = promtool(program, "check", "rules", "--lint-fatal", RULES)
    assert (code, f"{len(ALERTS)} rules found" in said) == (0, True), said


def test_every_alert_has_cases() -> None:
    assert CASES.keys() == ALERTS.keys()
    for name, cases in CASES.items():
        assert {case.fires is None for case in cases} == {True, False}, name


def promtool_test(name: str, cases: tuple[Case, ...], rules: Path) -> dict[str, Any]:
    """The cases of an alert, as `promtool test rules` reads them."""
    return {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values} for series, values in case.series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": f"{case.at}m",
                        "alertname": name,
                        "exp_alerts": [expected(name, case)] if case.fires else [],
                    }
                ],
            }
            for case in cases
        ],
    }


def expected(name: str, case: Case) -> Mapping[str, Any]:
    """How an alert fires: with its labels and annotations."""
    assert case.fires
    alert = ALERTS[name]
    return {
        "exp_labels": {"severity": alert.severity, **case.fires.labels},
        "exp_annotations": {
            "summary": case.fires.summary,
            "description": alert.remedy,
            "runbook_url": f"{monitoring.RUNBOOK}#{name.lower()}",
        },
    }


@pytest.mark.parametrize("name", ALERTS)
def test_it_fires_when_it_should(name: str, program: Program, tmp_path: Path) -> None:
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(promtool_test(name, CASES[name], RULES)))
    code, said = promtool(program, "test", "rules", file)
    assert code == 0, said


@pytest.mark.parametrize("name", ALERTS)
def test_the_cases_tell_another_rule(name: str, program: Program, tmp_path: Path) -> None:
    """A rule that never fires, and one that always does, fail them."""
    for wrong in ("vector(1) < 0", "vector(1)"):
        rules = json.loads(RULES.read_text())
        for rule in rules["groups"][0]["rules"]:
            rule["expr"] = wrong
        other = tmp_path / "rules.yaml"
        other.write_text(json.dumps(rules))
        file = tmp_path / "test.yaml"
        for case in CASES[name]:
            if (case.fires is None) == (wrong == "vector(1)"):
                file.write_text(yaml.safe_dump(promtool_test(name, (case,), other)))
                assert promtool(program, "test", "rules", file)[0] != 0, (name, wrong)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[AdminServer]:
    log = tmp_path_factory.mktemp("monitored") / "log"
    # Its own schema: the traffic ends the connections of this database only to the server.
    with AdminServer(
        log, "--db-url", postgres_url, "--schema", "monitored", *traffic.SETTINGS
    ) as s:
        yield s


@pytest.fixture(scope="module")
async def prometheus(
    program: Program,
    server: AdminServer,
    postgres_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Prometheus]:
    """One that has scraped a server with traffic for some seconds."""
    directory = tmp_path_factory.mktemp("prometheus") / "prometheus"
    host, port = server.admin
    with Prometheus(program, directory, {JOB: [f"{host}:{port}"]}) as found:
        async with connect(server.address) as channel:
            api = Api(channel)
            await traffic.prepare(api)
            calls = asyncio.ensure_future(
                traffic.go_on(api, postgres_url, SCHEMA, hosts=3, pause=0.1, trouble_every=10)
            )
            deadline = time.monotonic() + 90
            while not await asyncio.to_thread(is_filled, found):
                await asyncio.wait([calls], timeout=0.5)
                if calls.done() or time.monotonic() > deadline:
                    break  # the tests say what is missing
            calls.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calls
        yield found


def is_filled(prometheus: Prometheus) -> bool:
    """Whether every query finds something, and an alert that the traffic sets off fires."""
    found = prometheus.query(f'ALERTS{{alertname="{SET_OFF}",alertstate="firing"}}')
    return bool(found) and not any(unanswered(prometheus))


def panels() -> Iterator[tuple[str, str]]:
    """The queries of the dashboard, as Grafana sends them with everything chosen."""
    for panel in monitoring.dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']}: {target['legendFormat']}", as_sent(target["expr"])


def as_sent(query: str) -> str:
    for name in ("job", "instance", "namespace"):
        query = query.replace(f"${name}", ".*")
    return query.replace("$__rate_interval", "15s")


def unanswered(prometheus: Prometheus) -> Iterator[str]:
    """The queries of the dashboard that find nothing."""
    return (title for title, query in panels() if not prometheus.query(query))


async def test_every_panel_has_data(prometheus: Prometheus) -> None:
    assert list(await asyncio.to_thread(lambda: list(unanswered(prometheus)))) == []


async def test_labels_of_legends_are_there(prometheus: Prometheus) -> None:
    for panel in monitoring.dashboard()["panels"]:
        for target in panel.get("targets", ()):
            legend = target["legendFormat"]
            for series in await asyncio.to_thread(prometheus.query, as_sent(target["expr"])):
                for label in legend.split("{{")[1:]:
                    assert label.split("}}")[0] in series["metric"], (panel["title"], legend)


async def test_variables_have_values(prometheus: Prometheus) -> None:
    for name, labels in (
        ("job", {JOB}),
        ("namespace", {"default"}),
    ):
        found = await asyncio.to_thread(prometheus.get, f"label/{name}/values")
        assert labels <= set(found)


async def test_the_rules_are_evaluated(prometheus: Prometheus) -> None:
    answer = await asyncio.to_thread(prometheus.get, "rules")
    [group] = answer["groups"]
    rules = {rule["name"]: rule for rule in group["rules"]}
    assert rules.keys() == ALERTS.keys()
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules.values()} == {("ok", "")}
    assert rules[SET_OFF]["state"] == "firing"
    assert rules["WfePersistenceBug"]["state"] == "inactive"


async def test_metrics_follow_the_rules_of_prometheus(
    prometheus: Prometheus, program: Program, server: AdminServer
) -> None:
    text = (await asyncio.to_thread(server.get, "/metrics")).text
    code, said = promtool(program, "check", "metrics", given=text)
    assert (code, said) == (0, "")
