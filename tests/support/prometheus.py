"""A real Prometheus: it scrapes servers, evaluates the alert rules and answers queries."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.support.binaries import Program
from tests.support.ports import free_port

RULES = Path(__file__).parents[2] / "deploy" / "monitoring" / "alerts.yaml"


def promtool(program: Program, *arguments: str | Path, given: str = "") -> tuple[int, str]:
    """Run the promtool beside a Prometheus; its exit code, and what it said."""
    done = subprocess.run(
        [program.path.with_name("promtool"), *arguments],
        env=program.env, input=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """A Prometheus of one's own, in a directory of its own. `targets`: the addresses to scrape, by
    job; `every`: seconds between scrapes, and between evaluations of the rules."""

    def __init__(
        self,
        program: Program,
        directory: Path,
        targets: Mapping[str, Sequence[str]],
        every: int = 1,
        rules: Path = RULES,
    ) -> None:
        self._program = program
        self._directory = directory
        self._address = f"127.0.0.1:{free_port()}"
        self._configuration = {
            "global": {
                "scrape_interval": f"{every}s",
                "scrape_timeout": f"{every}s",
                "evaluation_interval": f"{every}s",
            },
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }

    def __enter__(self) -> Self:
        self._directory.mkdir()
        configuration = self._directory / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(self._configuration))
        with (self._directory / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    *self._program.command,
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                env=self._program.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                said = (self._directory / "log").read_text()
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer of its API. Raises AssertionError if it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"{path}: {exc.read().decode()}") from exc
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """What a query finds now."""
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found
