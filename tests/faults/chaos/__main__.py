"""`./run faults`: break everything under load, and check that nothing acknowledged is lost.

Each fault is injected into real processes while clients write, hold and read; afterwards the
invariants of docs/reliability.md are checked. Without arguments every fault is run once (about ten
minutes). The long form: `--seeds 20 --minutes 30`.

The exit status is 0 if every run passed or was skipped, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.faults.chaos.faults import ALL_TOGETHER, FAULTS, Fault
from tests.faults.chaos.planted import BUGS
from tests.faults.chaos.runner import Result, run, run_on
from tests.faults.chaos.stage import Stage
from tests.support.processes import Run


def _say(line: str) -> None:
    print(line, flush=True)


def _print_header() -> None:
    _say(
        f"{'fault':20} {'seed':>4} {'calls':>7} {'ok':>7} {'err':>5} {'maybe':>5} "
        f"{'writes/s':>8} {'resumed':>8}  verdict"
    )


def _print(result: Result) -> None:
    resumed = "-" if result.resumed_seconds is None else f"{result.resumed_seconds:.2f} s"
    _say(
        f"{result.fault:20} {result.seed:>4} {result.calls:>7} {result.ok:>7} {result.errors:>5} "
        f"{result.maybe:>5} {result.rate:>8.0f} {resumed:>8}  {result.verdict}"
    )
    if result.codes:
        _say("    " + ", ".join(f"{code} {n}" for code, n in result.codes.items()))
    for note in result.notes[:12]:
        _say(f"    ! {note}")
    if len(result.notes) > 12:
        _say(f"    ! and {len(result.notes) - 12} more")


def _summary(results: list[Result]) -> Iterator[str]:
    """A row for each fault, as docs/reliability.md has them."""
    yield "| fault | runs | calls | ok | nothing written | maybe written | resumed | violations |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(result.fault for result in results):
        runs = [r for r in results if r.fault == name and r.verdict in ("passed", "FAILED")]
        if not runs:
            yield f"| `{name}` | 0 | | | | | | |"
            continue
        resumed = sorted(r.resumed_seconds or float("inf") for r in runs)
        calls, ok, errors, maybe = (
            sum(numbers) for numbers in zip(*((r.calls, r.ok, r.errors, r.maybe) for r in runs),
                                            strict=True)
        )  # fmt: skip
        yield (
            f"| `{name}` | {len(runs)} | {calls} | {ok} | {errors} | {maybe} "
            f"| {resumed[len(runs) // 2]:.2f} s, at most {resumed[-1]:.2f} s "
            f"| {sum(len(r.notes) for r in runs)} |"
        )


async def _together(
    fault: Fault, arguments: argparse.Namespace, run_dir: Path, results: list[Result]
) -> None:
    """One stage for as many minutes; a round of faults after the other, each in a namespace of its
    own."""
    seed = arguments.seed
    random_ = random.Random(f"{fault.name} {seed}")
    end = time.monotonic() + arguments.minutes * 60
    async with Stage(fault.layout, random_, run_dir) as stage:
        number = 0
        while time.monotonic() < end:
            number += 1
            result = Result(fault.name, seed)
            # Every other round sends each write twice at the same time.
            fault = replace(fault, layout=replace(fault.layout, twice=number % 2 == 0))
            begin = time.monotonic()
            await run_on(stage, fault, result, random_, arguments.clients, f"round{number}")
            result.seconds = time.monotonic() - begin
            _print(result)
            results.append(result)


async def _main(arguments: argparse.Namespace, run_dir: Path) -> list[Result]:
    results: list[Result] = []
    names = arguments.fault or list(FAULTS)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    _print_header()
    try:
        for name in names:
            if name == ALL_TOGETHER:
                await _together(FAULTS[name], arguments, run_dir, results)
                continue
            for seed in seeds:
                result = await run(
                    FAULTS[name], seed, run_dir, clients=arguments.clients, keep=arguments.keep
                )
                _print(result)
                results.append(result)
    finally:
        _save(results, arguments.json)
    return results


async def _catch_planted(run_dir: Path, clients: int, only: list[str]) -> bool:
    """Whether each planted bug is found, by a broken invariant that it is known to break."""
    caught = 0
    bugs = {name: bug for name, bug in BUGS.items() if not only or name in only}
    for name, bug in bugs.items():
        broken: list[str] = []
        for seed in (1, 2, 3):
            result = await run(FAULTS[bug.fault], seed, run_dir, clients=clients, planted=name)
            broken = [note for note in result.notes if note.startswith(bug.invariant)]
            if broken:
                break
        caught += bool(broken)
        _say(f"{'caught' if broken else 'MISSED':7} {name} ({bug.fault}, seed {seed})")
        for note in (broken or result.notes)[:1]:
            _say(f"        {len(broken)} like: {note}")
    _say(f"caught {caught}/{len(bugs)}")
    return caught == len(bugs)


def _save(results: list[Result], path: Path | None) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
                "results": [result.as_json() for result in results],
            },
            indent=1,
        )
        + "\n"
    )


async def _stoppable(arguments: argparse.Namespace, run_dir: Path) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if arguments.planted is not None:
        return 0 if await _catch_planted(run_dir, arguments.clients, arguments.planted) else 1
    results = await _main(arguments, run_dir)
    verdicts = [result.verdict for result in results]
    if len(results) > 1:
        for row in _summary(results):
            _say(row)
    _say(", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)))
    return 0 if set(verdicts) <= {"passed", "skipped"} else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./run faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
        epilog="faults:\n" + "\n".join(f"  {f.name:20} {f.what}" for f in FAULTS.values())
        + "\n\nbugs:\n" + "\n".join(f"  {name}" for name in BUGS),
    )  # fmt: skip
    add = parser.add_argument
    add("--fault", action="append", choices=list(FAULTS), metavar="NAME",
        help="only this one; may be repeated")  # fmt: skip
    add("--seed", type=int, default=1, help="the first seed (default 1)")
    add("--seeds", type=int, default=1, help="how many seeds (default 1)")
    add("--minutes", type=float, default=1.0, help=f"how long {ALL_TOGETHER} goes on (default 1)")
    add("--clients", type=int, default=4, help="client processes (default 4)")
    add("--json", type=Path, metavar="FILE", help="save the results")
    add("--keep", type=Path, metavar="DIRECTORY",
        help="keep histories and logs of the runs that do not pass")  # fmt: skip
    add("--planted", nargs="*", metavar="BUG",
        help="instead: plant these bugs in the server (all, if none is named), and show\n"
        "that each is caught")  # fmt: skip
    arguments = parser.parse_args()
    code = 130
    processes = Run()
    try:
        code = asyncio.run(_stoppable(arguments, processes.directory))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("interrupted")
    finally:
        for line in processes.end():
            _say(f"was left, and has been ended: {line}")
    sys.exit(code)


if __name__ == "__main__":
    main()
