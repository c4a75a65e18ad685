"""Record what the dashboard shows of a real run, for the picture in docs/monitoring.md.

python -m tests.deploy.recorded FILE [SECONDS]

Two servers on an embedded PostgreSQL, traffic that swells and that has its troubles, and a
Prometheus that scrapes both. Then Prometheus is asked every query of the dashboard, as Grafana
would ask it, and the answers are written to FILE as JSON. `./run picture` draws them.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from deploy.monitoring import monitoring
from tests.deploy import traffic
from tests.support import binaries
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.prometheus import Prometheus
from wfe_persistence.embedded import EmbeddedPostgres

_SECONDS: Final = 420
_SCRAPE_SECONDS: Final = 5
_RATE_INTERVAL: Final = "30s"
_JOB: Final = "wfe-persistence"


def main() -> None:
    """Record, as the arguments say."""
    match sys.argv[1:]:
        case [file]:
            seconds = _SECONDS
        case [file, number]:
            seconds = int(number)
        case _:
            sys.exit(__doc__)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-picture-")))
        directory.chmod(0o755)  # PostgreSQL may be another user
        answers = record(stack, directory, seconds)
    Path(file).write_text(json.dumps(answers))


def record(stack: ExitStack, directory: Path, seconds: int) -> dict[str, Any]:
    """Run servers, traffic and Prometheus for so long; the answers to the dashboard's queries."""
    postgres = stack.enter_context(EmbeddedPostgres(directory / "postgres"))
    servers = [
        stack.enter_context(
            AdminServer(directory / f"server-{n}", "--db-url", postgres.url, *traffic.SETTINGS)
        )
        for n in range(2)
    ]
    targets = [":".join(map(str, server.admin)) for server in servers]
    prometheus = stack.enter_context(
        Prometheus(
            binaries.prometheus(), directory / "prometheus", {_JOB: targets}, _SCRAPE_SECONDS
        )
    )
    # The first rates need some scrapes.
    start = time.time() + 4 * _SCRAPE_SECONDS
    asyncio.run(run(servers, postgres.url, seconds))
    return {
        "start": start,
        "end": time.time(),
        "panels": {
            str(panel["id"]): [
                line
                for target in panel.get("targets", ())
                for line in lines(prometheus, target, start)
            ]
            for panel in monitoring.dashboard()["panels"]
        },
    }


async def run(servers: list[AdminServer], database_url: str, seconds: int) -> None:
    """Traffic on all servers; in the middle third twice as much."""
    async with connect(servers[0].address) as first, connect(servers[1].address) as second:
        apis = [Api(first), Api(second)]
        await traffic.prepare(apis[0])

        async def wave(begin: float, end: float, broken: str | None = None) -> None:
            await asyncio.sleep(begin)
            try:
                async with asyncio.timeout(end - begin), asyncio.TaskGroup() as group:
                    for api in apis:
                        url = broken if api is apis[0] else None
                        group.create_task(traffic.go_on(api, url, hosts=2, pause=0.3))
            except TimeoutError:
                pass

        await asyncio.gather(wave(0, seconds, database_url), wave(seconds / 3, seconds * 2 / 3))


def lines(prometheus: Prometheus, target: dict[str, str], start: float) -> list[dict[str, Any]]:
    """The lines of a query: legends, and points of time and value."""
    query = target["expr"].replace("$__rate_interval", _RATE_INTERVAL)
    for name in ("job", "instance", "namespace"):
        query = query.replace(f"${name}", ".*")
    answer = prometheus.get(
        "query_range", query=query, start=start, end=time.time(), step=_SCRAPE_SECONDS
    )
    return [
        {
            "legend": legend(target["legendFormat"], series["metric"]),
            "points": [[at, float(value)] for at, value in series["values"]],
        }
        for series in answer["result"]
    ]


def legend(template: str, metric: dict[str, str]) -> str:
    """The legend of a line, by the labels of its series."""
    return re.sub(r"{{(\w+)}}", lambda label: metric.get(label[1], ""), template)


if __name__ == "__main__":
    main()
