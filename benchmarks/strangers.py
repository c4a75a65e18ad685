"""What those cost who are let in nowhere: 10,000 bad handshakes and 10,000 bad tokens a minute.

A server with mutual TLS is called by a client with a good certificate, in turns alone and while
strangers, in a process of their own, do all that `tests/support/strangers.py` can, and one with a
certificate sends unknown tokens and forged JWTs. The ratios are those of the two.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from benchmarks.timing import percentile, timed
from tests.support.api import Api
from tests.support.authority import Authority
from tests.support.issuer import AUDIENCE, ISSUER, Issuer
from tests.support.server import ServerProcess
from tests.support.strangers import Strangers
from wfe.persistence.v1.workflow_pb2 import GetRunnableInstancesRequest
from wfe.persistence.v1.workflow_pb2_grpc import WorkflowServiceStub

Figures = list[dict[str, Any]]

_CALLERS: Final = 4
_ROUNDS: Final = 5
_PER_SECOND: Final = 10_000 / 60
_THREADS: Final = 32


async def measure(url: str, seconds: float) -> Figures:
    """Measures the same calls alone and under attack."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ours, theirs = Authority(directory / "ours"), Authority(directory / "theirs")
        pair = ours.issue("server", "localhost", "127.0.0.1")
        client = ours.issue("client", "client.example", common_name="client")
        theirs.issue("client", "client.example", common_name="client")
        issuer = Issuer(directory / "jwks.json", "RS256")
        forged = directory / "forged"
        forged.write_text("\n".join(["x" * 40, issuer.tampered("client")]))
        policy = directory / "policy.toml"
        policy.write_text(
            '[[grant]]\nprincipals = ["cert:client"]\nrole = "host"\nnamespaces = ["*"]\n'
        )
        server = ServerProcess(
            directory / "log", "--db-url", url, "--policy-file", str(policy),
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--tls-client-ca", str(ours.ca_file), "--jwt-issuer", ISSUER,
            "--jwt-audience", AUDIENCE, "--jwt-jwks", str(issuer.file),
        )  # fmt: skip
        server.credentials = ours.channel_credentials(client)
        with server:
            tries: dict[str, list[dict[str, float]]] = {"alone": [], "under attack": []}
            for _ in range(_ROUNDS):
                for way, each in tries.items():
                    with _attack(server, directory) if way != "alone" else nullcontext():
                        each.append(await _calls(server, seconds))
            lines = len(server.log().splitlines())
    best = {way: {key: min(t[key] for t in each) for key in each[0]} for way, each in tries.items()}
    first = best["alone"]
    return [
        {"way": way, "log_lines": lines}
        | figures
        | {f"{key}_ratio": value / first[key] for key, value in figures.items()}
        for way, figures in best.items()
    ]


async def _calls(server: ServerProcess, seconds: float) -> dict[str, float]:
    assert server.credentials
    request = GetRunnableInstancesRequest(page_size=1)
    async with grpc.aio.secure_channel(server.address, server.credentials) as channel:
        api = Api(channel)

        async def call(_: int) -> object:
            return await api.workflows.GetRunnableInstances(request)

        await call(0)
        took = await timed(call, _CALLERS, seconds)
    memory = psutil.Process(server.process.pid).memory_info().rss
    return {
        "p50_ms": percentile(took, 50) * 1e3,
        "p99_ms": percentile(took, 99) * 1e3,
        "memory_mb": memory / 1e6,
    }


@contextmanager
def _attack(server: ServerProcess, directory: Path) -> Iterator[None]:
    """The attack goes on while the context lasts, and at its end says what it has done."""
    command = [sys.executable, "-m", "benchmarks.strangers", server.address, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        begin = time.perf_counter()
        yield
        process.stdin.close()
        done = [int(number) for number in process.stdout.readline().split()]
        least = 0.8 * _PER_SECOND * (time.perf_counter() - begin)
        if min(done) < least:
            print(f"only {done} of {least / 0.8:.0f} handshakes and tokens", file=sys.stderr)


def attack(address: str, directory: Path) -> None:
    """Handshakes and calls at a steady rate each, until the standard input ends."""
    theirs, ours = directory / "theirs", directory / "ours"
    strangers = Strangers(address, (theirs / "client.pem", theirs / "client.key"))
    credentials = grpc.ssl_channel_credentials(
        (ours / "ca.pem").read_bytes(),
        (ours / "client.key").read_bytes(),
        (ours / "client.pem").read_bytes(),
    )
    ended = threading.Event()
    done = {"handshakes": 0, "tokens": 0}
    with (
        grpc.secure_channel(address, credentials) as channel,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        call = WorkflowServiceStub(channel).GetRunnableInstances
        request = GetRunnableInstancesRequest()
        tokens = itertools.cycle((directory / "forged").read_text().splitlines())

        def send() -> None:
            metadata = (("authorization", f"Bearer {next(tokens)}"),)
            call.future(request, metadata=metadata).exception()

        ways = itertools.cycle(strangers.ways.values())

        def steadily(what: str, one: Any) -> None:
            begin = time.perf_counter()
            while not ended.is_set():
                while done[what] < (time.perf_counter() - begin) * _PER_SECOND:
                    pool.submit(one())
                    done[what] += 1
                time.sleep(0.005)

        threads = [
            threading.Thread(target=steadily, args=("handshakes", lambda: next(ways))),
            threading.Thread(target=steadily, args=("tokens", lambda: send)),
        ]
        for thread in threads:
            thread.start()
        print("begins", flush=True)
        sys.stdin.read()
        ended.set()
        for thread in threads:
            thread.join()
        pool.shutdown(wait=True, cancel_futures=True)
    strangers.close()
    print(done["handshakes"], done["tokens"], flush=True)


def table(figures: Figures) -> str:
    """The figures as text."""
    lines = [f"{'':16}{'p50 ms':>16}{'p99 ms':>16}{'memory MB':>16}"]
    for row in figures:
        cells = [
            f"{row[key]:.2f} (x{row[f'{key}_ratio']:.2f})"
            for key in ("p50_ms", "p99_ms", "memory_mb")
        ]
        lines.append(f"{row['way']:16}" + "".join(f"{cell:>16}" for cell in cells))
    lines.append(f"{figures[0]['log_lines']} lines in the log")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the attack, for `./run bench --strangers`")
    parser.add_argument("address")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    attack(arguments.address, arguments.directory)
