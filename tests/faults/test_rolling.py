"""A rolling restart under load costs nobody a call who tries UNAVAILABLE again.

`WFE_RESTARTS=50 ./run test tests/faults/test_rolling.py -s` is the long form, with the counts.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.rolling import Calls, Pair, roll, stored

RESTARTS = int(os.environ.get("WFE_RESTARTS", "4"))


# A restart takes 2 s, but much more on a machine that is busy with other things.
@pytest.mark.timeout(60 + 30 * RESTARTS)
async def test_no_call_is_lost_in_rolling_restarts(tmp_path: Path, database_url: str) -> None:
    async with Pair(tmp_path, database_url) as pair:
        calls = Calls(pair.targets, clients=12)
        statuses = await roll(pair, calls, RESTARTS, pause=0.3)
        logs = [server.log() for server in pair.servers]
    print(f"\n{RESTARTS} restarts: {dict(calls.attempts)}, failed: {dict(calls.failed)}")
    assert statuses == [0] * RESTARTS
    assert not calls.failed
    assert set(calls.attempts) <= {
        "OK",
        "UNAVAILABLE SHUTTING_DOWN",
        "UNAVAILABLE (no ErrorInfo)",  # there is no connection while the server is away
        "UNAVAILABLE DATABASE_UNAVAILABLE",  # it has not yet reached its database
    }
    assert calls.attempts["UNAVAILABLE SHUTTING_DOWN"]
    found, errors = stored(database_url)
    assert calls.created <= found
    assert errors == calls.errors_stored, "none was lost, and none stored twice"
    for log in logs:
        assert "bug" not in log
        assert "Traceback" not in log
