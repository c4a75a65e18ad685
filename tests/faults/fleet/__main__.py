"""`./run fleet`: real hosts of the engine on a server pair, all killed at random.

The workflows are linear, parallel, with events, delays, sagas and sub-workflows. Hosts, servers and
PostgreSQL are killed with SIGKILL while clients start them; then every workflow must be complete,
each step must have run and never twice at the same time, no event may be lost, and nothing may be
left in queues and locks. `--beside` runs the same on `wfe-postgres` and `wfe-valkey` with Redis,
and counts what is lost there. `--compare` measures instead, without kills.

The exit status is 0 if every run on this server passed, else 1. The hosts are built with cargo.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import sys
from pathlib import Path

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.faults.fleet import compare
from tests.faults.fleet.build import CannotBuildError, build
from tests.faults.fleet.cast import Redis
from tests.faults.fleet.judge import KINDS
from tests.faults.fleet.runner import PROVIDERS, Fleet, Plan, Result
from tests.support.processes import Run


def _say(line: str) -> None:
    print(line, flush=True)


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    plans = []
    for providers in ["grpc", *(["valkey"] if arguments.beside else [])]:
        if arguments.only not in providers:
            continue
        for hosts in arguments.hosts:
            plan = Plan(
                providers, hosts, arguments.workflows, arguments.kills, arguments.seed,
                arguments.freezes, arguments.lease,
            )  # fmt: skip
            plans.append(plan)
    if arguments.beside and arguments.kill_redis:
        plans.append(
            Plan("valkey", arguments.hosts[-1], arguments.workflows, arguments.kills,
                 arguments.seed, arguments.freezes, arguments.lease, kill_redis=True)
        )  # fmt: skip
    return plans


def _print(result: Result) -> None:
    plan, verdict = result.plan, result.verdict
    kills = ", ".join(f"{count} {kind}" for kind, count in sorted(result.kills.items()))
    _say(
        f"{PROVIDERS[plan.providers]}: {plan.hosts} hosts, seed {plan.seed}: {kills} killed,"
        f" {result.frozen} frozen; {verdict.complete} of {verdict.workflows} workflows complete,"
        f" {verdict.executions} executions, {verdict.again} of them again,"
        f" {verdict.outlived} outlived their locks, {verdict.fenced} fenced;"
        f" {result.published} events;"
        f" {result.seconds:.0f} s: {'passed' if result.passed else 'LOST'}"
    )
    for note in verdict.notes[:12]:
        _say(f"    ! {note}")
    if len(verdict.notes) > 12:
        _say(f"    ! and {len(verdict.notes) - 12} more")


def _table(results: list[Result]) -> None:
    """As docs/reliability.md has it."""
    counted = ("hosts", "kills", "workflows", "complete", "run again", "fenced", *KINDS)
    _say(f"| hosts on | {' | '.join(counted)} |")
    _say("|---|" + "--:|" * len(counted))
    for result in results:
        plan, verdict = result.plan, result.verdict
        redis = ", Redis killed too" if plan.kill_redis else ""
        counts = " | ".join(str(verdict.lost[kind]) for kind in KINDS)
        _say(
            f"| {PROVIDERS[plan.providers]}{redis} | {plan.hosts} | {result.kills.total()}"
            f" | {verdict.workflows} | {verdict.complete} | {verdict.again} | {verdict.fenced}"
            f" | {counts} |"
        )


def _save(path: Path | None, **content: object) -> None:
    if path is not None:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, **content}, indent=1) + "\n")


async def _main(arguments: argparse.Namespace, run_dir: Path) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    peers = arguments.beside or arguments.compare
    if peers and not Redis.is_installed():
        _say("redis-server is not installed: on Debian, apt-get install redis-server")
        return 2
    profile = "bench" if arguments.compare else "dev"
    program = arguments.program or await asyncio.to_thread(
        build, run_dir, profile=profile, peers=peers
    )
    if arguments.compare:
        rows = await compare.compare(program, run_dir, arguments.only)
        _save(arguments.json, rows=rows)
        return 0
    results = []
    for plan in _plans(arguments):
        fleet = Fleet(plan, program, run_dir)
        result = await fleet.run()
        results.append(result)
        _print(result)
        if arguments.keep and not result.passed:
            shutil.copytree(fleet.directory, arguments.keep / fleet.directory.name,
                            dirs_exist_ok=True)  # fmt: skip
    _table(results)
    _save(arguments.json, results=[result.as_json() for result in results])
    return 0 if all(result.passed for result in results if result.plan.providers == "grpc") else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./run fleet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--hosts", type=int, nargs="+", default=[2, 4], help="how many hosts (default 2, then 4)")
    add("--workflows", type=int, default=2000, help="how many are started (default 2000)")
    add("--kills", type=int, default=120, help="how many processes are killed (default 120)")
    add("--freezes", type=int, default=6,
        help="how many hosts are frozen for longer than their leases (default 6)")  # fmt: skip
    add("--lease", type=float, default=5.0, help="seconds that leases and locks last (default 5)")
    add("--seed", type=int, default=1, help="chooses what is killed when (default 1)")
    add("--beside", action="store_true", help="the same on wfe-postgres and wfe-valkey")
    add("--kill-redis", action="store_true", help="with --beside: once more, killing Redis too")
    add("--compare", action="store_true", help="instead: measure, without kills, side by side")
    add("--only", default="", help="only on what has this in its name: grpc, valkey, memory")
    add("--program", type=Path, help="the hosts' program, already built (default: build it)")
    add("--json", type=Path, metavar="FILE", help="save the results")
    add("--keep", type=Path, metavar="DIRECTORY", help="keep journals and logs of what lost")
    arguments = parser.parse_args()
    code = 130
    processes = Run()
    try:
        code = asyncio.run(_main(arguments, processes.directory))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("interrupted")
    except CannotBuildError as exc:
        _say(f"the hosts can't be built: {exc}")
        code = 2
    finally:
        for line in processes.end():
            _say(f"was left, and has been ended: {line}")
    sys.exit(code)


if __name__ == "__main__":
    main()
