"""What checks cost, and how long others wait meanwhile.

The time to check a document of 4 kB and one of 4 MB stands beside that of the first version of the
check and that of `json.loads`, both of which build values. The waits are the longest of calls on
other channels, of health and of a write, while a request that is hard to judge is processed; the
best of several tries, because a busy machine makes anybody wait.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks import old_check
from tests.support import hostile
from tests.support.liveness import wait_of_others
from tests.support.server import ServerProcess
from wfe_persistence.rpc.check.json_rules import check_json

Figures = list[dict[str, Any]]

_TRIES: Final = 3
_SECONDS: Final = 0.2
_SIZES: Final = {"4 kB": 4096, "4 MB": hostile.BYTES}


async def measure(url: str) -> Figures:
    """Measures the checks of documents here, and waits on a server."""
    figures = [_of_document(*case) for case in _documents()]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with ServerProcess(log, "--db-url", url) as server:
            for name, (path, encode) in hostile.REQUESTS.items():
                data = encode()
                tries = [await wait_of_others(server.address, path, data) for _ in range(_TRIES)]
                figures.append(
                    {
                        "request": name,
                        "bytes": len(data),
                        "request_ms": min(wait.request for wait in tries) * 1e3,
                        "health_ms": min(wait.health for wait in tries) * 1e3,
                        "write_ms": min(wait.write for wait in tries) * 1e3,
                    }
                )
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


def _documents() -> list[tuple[str, str, str]]:
    kinds = dict(hostile.LISTS)
    return [
        (kind, size, f"[{hostile.filled(item + ',', count)}{item}]")
        for size, count in _SIZES.items()
        for kind, item in kinds.items()
    ]


def _of_document(kind: str, size: str, text: str) -> dict[str, Any]:
    return {
        "document": f"{size}: {kind}",
        "check_ms": _best(check_json, text),
        "old_check_ms": _best(old_check.check_json, text),
        "json_loads_ms": _best(json.loads, text),
    }


def _best(function: Callable[[str], object], text: str) -> float:
    """The shortest time of a call, in milliseconds."""
    best = float("inf")
    end = perf_counter() + _SECONDS
    while (begin := perf_counter()) < end:
        function(text)
        best = min(best, perf_counter() - begin)
    return best * 1e3


def table(figures: Figures) -> str:
    """Prints the figures as two tables."""
    lines = [f"{'document':<36}{'check ms':>10}{'before':>11}{'json.loads':>12}{'check/loads':>13}"]
    lines += [
        f"{f['document']:<36}{f['check_ms']:>10.3f}{f['old_check_ms']:>11.3f}"
        f"{f['json_loads_ms']:>12.3f}{f['check_ms'] / f['json_loads_ms']:>13.2f}"
        for f in figures
        if "document" in f
    ]
    lines += ["", f"{'request':<36}{'bytes':>10}{'takes ms':>11}{'health':>12}{'write':>13}"]
    lines += [
        f"{f['request']:<36}{f['bytes']:>10}{f['request_ms']:>11.0f}{f['health_ms']:>12.1f}"
        f"{f['write_ms']:>13.1f}"
        for f in figures
        if "request" in f
    ]
    return "\n".join(lines)
