"""The short form of `./run faults`, and a proof that its checks find what is wrong.

Each invariant is broken once in a history made by hand, and some bugs are planted in the server.
The long form, with all faults, all planted bugs and many seeds, is `./run faults` itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.chaos import runner
from tests.faults.chaos.check import Stored, check
from tests.faults.chaos.faults import ALL_TOGETHER, FAULTS
from tests.faults.chaos.history import Call, History, Recorder
from tests.faults.chaos.planted import BUGS
from tests.faults.chaos.runner import Result, run, run_on
from tests.faults.chaos.stage import Stage

# One of each kind: a server, PostgreSQL, locks, the network, repetitions. The clock of the first
# server is an hour ahead all the time.
SHORT = ["one-server-kill", "backend-kill", "table-lock", "answers-lost", "twice-server-kill"]
SHORT_PLANTED = ["reply before commit", "retry that writes twice", "token for anybody"]


@pytest.fixture(scope="module")
async def stage(run_dir: Path) -> AsyncIterator[Stage]:
    async with Stage(FAULTS[ALL_TOGETHER].layout, random.Random(1), run_dir) as stage:
        yield stage


@pytest.mark.timeout(240)  # for machines that are busy with something else
@pytest.mark.parametrize("fault", SHORT)
async def test_nothing_acknowledged_is_lost(fault: str, stage: Stage) -> None:
    result = Result(fault, 1)
    namespace = fault.replace("-", "_")
    await run_on(stage, FAULTS[fault], result, random.Random(fault), 3, namespace)
    assert result.verdict == "passed", "\n".join(result.notes)
    assert result.resumed_seconds is not None
    assert result.ok > 0


async def test_run_with_little_load_is_invalid(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEAST_RATE", 1_000_000)
    monkeypatch.setattr(runner, "WARM_UP_SECONDS", 1.0)
    result = Result("client-kill", 1)
    await run_on(stage, FAULTS["client-kill"], result, random.Random(1), 1, "idle")
    assert result.verdict == "invalid"
    assert "acknowledged writes a second" in result.notes[0]
    assert result.fault_seconds == 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SHORT_PLANTED)
async def test_planted_bug_is_caught(name: str, run_dir: Path) -> None:
    bug = BUGS[name]
    notes: list[str] = []
    for seed in (1, 2, 3):
        result = await run(FAULTS[bug.fault], seed, run_dir, clients=3, planted=name)
        notes += result.notes
        if any(note.startswith(bug.invariant) for note in result.notes):
            return
    pytest.fail(f"not caught: {notes}")


@pytest.mark.timeout(240)
def test_interrupted_run_leaves_nothing() -> None:
    """Interrupted under load, with a disk mounted where that is possible."""
    fault = "data-disk-full" if os.geteuid() == 0 else "server-kill"
    harness = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.chaos", "--fault", fault], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    history = ""
    try:
        while not history:
            assert harness.poll() is None
            time.sleep(0.1)
            children = psutil.Process(harness.pid).children(recursive=True)
            for command in map(_command, children):
                if "tests.faults.chaos.client" in command:
                    history = command[command.index("--history") + 1]
        harness.send_signal(signal.SIGINT)
        said, _ = harness.communicate(timeout=60)
    finally:
        harness.kill()
    assert harness.returncode == 130, said
    assert "was left" not in said
    _, left = psutil.wait_procs(children, 10)
    assert not left
    # A disk that is still mounted there would keep it.
    assert not Path(history).parents[1].exists()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_documentation_names_every_fault_and_bug() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    for fault in FAULTS.values():
        assert f"| `{fault.name}` | {fault.what} |" in text
    for name, bug in BUGS.items():
        assert f"| {name} |" in text
        assert f"| `{bug.fault}` | {bug.invariant} |" in text


# The checks by themselves.

_T = 1_000_000.0


def _call(op: str, at: float, *, code: str = "OK", reason: str = "", took: float = 0.1,
          deadline: float | None = 2.0, answer: dict[str, Any] | None = None,
          **what: Any) -> Call:  # fmt: skip
    return Call(
        op, at, _T + at, deadline, what, end=at + took if code else None,
        wall_end=_T + at + took if code else None, code=code, reason=reason, answer=answer or {},
    )  # fmt: skip


def _violations(*calls: Call, stored: Stored | None = None) -> list[str]:
    history = History(Path("unused"))
    history.calls = list(calls)
    return check([history], stored or Stored())


def _created(id_: str = "persist-1") -> Call:
    return _call("create", 0, id=id_, tag=f"create {id_}", answer={"revision": 1})


def _hold(at: float, token: str, epoch: int, duration: float = 5.0) -> Call:
    return _call(
        "hold", at, resource="held-0", claim=token, duration=duration,
        answer={"acquired": True, "epoch": epoch, "expiry": _T + at + duration},
    )  # fmt: skip


def _claim(at: float, lease: str, epoch: int, duration: float = 5.0) -> Call:
    claimed = [["c 1", lease, epoch, _T + at + duration]]
    return _call("claim", at, duration=duration, answer={"claimed": claimed})


def _broken() -> Iterator[tuple[str, list[Call], Stored]]:
    """What must be found, by its first words."""
    event = _call("create_event", 0, id="e 1")
    yield "I1 event e 1 was acknowledged and is absent", [event], Stored()
    refused = _call("create_event", 0, id="e 1", code="UNAVAILABLE", reason="DATABASE_UNAVAILABLE")
    yield "I1 event e 1 exists, although", [refused], Stored(events={"e 1": ("alone", False)})
    marked = _call("mark_event", 1, id="e 1")
    yield (
        "I1 e 1 was marked as processed and is not", [event, marked],
        Stored(events={"e 1": ("alone", False)}),
    )  # fmt: skip
    yield "I1 workflow persist-1 was acknowledged and is absent", [_created()], Stored()
    persisted = _call("persist", 1, id="persist-1", tag="a", answer={"revision": 2})
    created = {"persist-1": (1, ["create persist-1"])}
    yield "I1 persist-1 has revision 1", [_created(), persisted], Stored(created)
    old = _call("load", 2, id="persist-1", answer={"revision": 1, "tags": ["create persist-1"]})
    yield (
        "I1 a reader of persist-1 saw revision 1 after 2", [_created(), persisted, old],
        Stored({"persist-1": (2, ["a"])}),
    )  # fmt: skip
    mixed = _call("load", 2, id="persist-1", answer={"revision": 2, "tags": ["a", "b"]})
    yield "I2 a reader of persist-1 saw a mix", [_created(), mixed], Stored(created)
    yield "I2 persist-1 is a mix", [_created()], Stored({"persist-1": (1, ["a", "b"])})
    winners = [
        _call("commit", 1, id="shared-0", tag=tag, expected=1, answer={"revision": 2})
        for tag in "ab"
    ]
    yield "I2 2 commits replaced revision 1", winners, Stored()
    yield (
        "I2 commit-1 was written 1 times, with the events of 0", [],
        Stored({"commit-1": (2, ["a"])}, subscriptions={"s a": "commit-1"}),
    )  # fmt: skip
    yield (
        "I2 commit-1 is of ['a'] and has subscriptions []", [],
        Stored({"commit-1": (2, ["a"])}, events={"e a": ("commit-1", False)}),
    )  # fmt: skip
    yield "I2 e 1 is stored without its item", [event], Stored(events={"e 1": ("alone", False)})
    yield "I2 e 1 is stored without the event", [], Stored(items={"e 1"})
    yield "I3 held-0 was held by epochs 1 and 2", [_hold(0, "a", 1), _hold(1, "b", 2)], Stored()
    late = _hold(0, "a", 1)
    late.answer["expiry"] += 3600
    yield "I3 a claim of epoch 1 began 3600", [late], Stored()
    stale = _call("let_go", 7, claims=["a"])
    yield (
        "I3 held-0 was let go by an epoch that was over",
        [_hold(0, "a", 1), _hold(6, "b", 2), stale], Stored(),
    )  # fmt: skip
    yield "I4 c 1 was held by epochs 1 and 2", [_claim(0, "a", 1), _claim(1, "b", 2)], Stored()
    scheduled = Stored({"commit-1": (2, ["1"])}, {"e 1": ("commit-1", False)},
                       {"s 1": "commit-1"})  # fmt: skip
    yield "I4 command c 1 was scheduled and is neither done nor pending", [], scheduled
    done = [_claim(0, "a", 1), _call("complete", 1, claims=["a"])]
    pending = Stored(scheduled.workflows, scheduled.events, scheduled.subscriptions, {"c 1"})
    yield "I4 command c 1 was completed and is pending", done, pending
    again = _call("persist", 2, id="persist-1", tag="a", answer={"revision": 3})
    yield (
        "I5 persist a was answered with revisions [2, 3]", [_created(), persisted, again],
        Stored({"persist-1": (3, ["a"])}),
    )  # fmt: skip
    yield (
        "I5 persist-1 was written 2 times", [_created(), persisted],
        Stored({"persist-1": (3, ["a"])}),
    )  # fmt: skip
    numbers = [_call("next_sequence", at, answer={"number": 7}) for at in (0, 1)]
    yield "I5 sequence number 7 was given 2 times", numbers, Stored()
    bug = _call("load", 0, id="x", code="INTERNAL", reason="INTERNAL")
    yield "I6 1 load got INTERNAL INTERNAL", [bug], Stored()
    cancelled = _call("load", 0, id="x", code="CANCELLED")
    yield "I6 1 load got CANCELLED (no reason)", [cancelled], Stored()
    slow = _call("load", 0, id="x", took=3.1, code="DEADLINE_EXCEEDED")
    yield "I6 load took 3.1 s", [slow], Stored()


@pytest.mark.parametrize(
    ("found", "calls", "stored"), list(_broken()), ids=[found for found, _, _ in _broken()]
)
def test_violation_is_found(found: str, calls: list[Call], stored: Stored) -> None:
    violations = _violations(*calls, stored=stored)
    assert any(v.startswith(found) for v in violations), violations


def test_what_is_in_order_is_not_found() -> None:
    tagged: dict[str, Any] = {"id": "commit-1", "tag": "1"}
    calls = [
        _created("commit-1"),
        _call("commit", 1, **tagged, expected=1, code="UNAVAILABLE"),
        _call("commit", 2, **tagged, expected=1, answer={"revision": 2}),
        _call("load", 3, id="commit-1", answer={"revision": 2, "tags": ["1"]}),
        _call("create_event", 3, id="e 2", code=""),
        _hold(0, "a", 1),
        _call("let_go", 1, claims=["a"], code="UNAVAILABLE"),
        _hold(2, "b", 2, duration=1.0),
        _hold(3.5, "c", 3),
        _claim(3, "l", 4),
        _call("complete", 4, claims=["l"]),
    ]
    stored = Stored(
        {"commit-1": (2, ["1"])}, {"e 1": ("commit-1", False), "e 2": ("alone", False)},
        {"s 1": "commit-1"}, items={"e 1", "e 2"},
    )  # fmt: skip
    assert _violations(*calls, stored=stored) == []


def test_delay_of_the_client_is_not_the_servers() -> None:
    history = History(Path("unused"))
    history.calls = [_call("load", 0, id="x", took=3.5, code="DEADLINE_EXCEEDED")]
    history.lags = [(1.0, 1.0)]
    assert check([history], Stored()) == []


def test_killed_client_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "history"
    writer = (
        "import os, sys, pathlib, signal\n"
        "from tests.faults.chaos.history import Recorder\n"
        "recorder = Recorder(pathlib.Path(sys.argv[1]))\n"
        "for n in range(100):\n"
        "    number = recorder.start('load', None, {'id': str(n)})\n"
        "    if n < 99: recorder.end(number, 'OK', '', {})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", writer, str(path)], check=False)
    assert done.returncode == -9
    with path.open("ab") as file:
        file.write(b'{"n": 100, "at"')  # half a line
    history = History(path)
    assert len(list(history.read_on())) == 99
    assert len(history.calls) == 100
    assert history.calls[-1].maybe


def test_history_is_read_while_it_is_written(tmp_path: Path) -> None:
    recorder, history = Recorder(tmp_path / "h"), History(tmp_path / "h")
    number = recorder.start("load", 1.0, {"id": "x"})
    assert list(history.read_on()) == []
    recorder.end(number, "UNAVAILABLE", "DATABASE_UNAVAILABLE", {})
    [call] = history.read_on()
    assert (call.op, call.ok, call.maybe) == ("load", False, False)
