"""The command `wfe-persistence-conformance`.

It runs the suite with pytest, in which `tests` is the package of that name in `suite/`, whatever
else is called so where it is run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

# Before gRPC is loaded: it would write lines of its own between those of the tests.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import pytest

SUITE: Final = Path(__file__).parent / "suite"
TESTS: Final = SUITE / "tests" / "conformance"
UNREACHABLE: Final = 3
_WAIT_SECONDS: Final = 10.0

_EPILOG: Final = """\
Everything else is handed to pytest: test_events.py, or test_events.py::test_NAME, or -k EXPRESSION
chooses tests, -x stops at the first that fails, --junitxml FILE writes a report, --collect-only
lists the tests. Tests of what the server says it can't do (GetStoreInfo) are skipped.

Exit status: 0 all tests passed, 1 some failed, 2 interrupted or wrong usage, 3 no server there.
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the suite against the server that the arguments name, and exit."""
    parser = argparse.ArgumentParser(
        prog="wfe-persistence-conformance",
        description="Run the conformance suite of wfe.persistence.v1 against a server. It needs "
        "only the server's address, but a server without other users: it writes and deletes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = version("wfe-persistence-conformance")
    parser.add_argument("--version", action="version", version=f"%(prog)s {number}")
    parser.add_argument(
        "--target",
        required=True,
        metavar="HOST:PORT",
        help="the address; it is called in plain text",
    )
    parser.add_argument(
        "--namespace", metavar="NAME", help="run in this namespace, which the server must have"
    )
    parser.add_argument(
        "--id-seed", metavar="N", type=int, help="make the same ids as every run with this number"
    )
    known, others = parser.parse_known_args(arguments)
    if "--collect-only" not in others and not _reachable(known.target):
        print(f"wfe-persistence-conformance: no gRPC server at {known.target}", file=sys.stderr)
        sys.exit(UNREACHABLE)
    options = [f"--target={known.target}"]
    if known.namespace:
        options.append(f"--namespace={known.namespace}")
    if known.id_seed is not None:
        options.append(f"--id-seed={known.id_seed}")
    # The root and the settings are the suite's, wherever the command is run, and nothing is written
    # beside it: it may be installed where nobody can write.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(SUITE))
    sys.exit(
        pytest.main(
            [
                *("-c", str(Path(__file__).with_name("pytest.ini"))),
                *("--rootdir", str(SUITE)),
                *("-p", "wfe_persistence_conformance.plugin"),
                *("-p", "no:cacheprovider"),
                *options,
                *map(_located, others),
                *([] if any(map(_names_a_test, others)) else [str(TESTS)]),
            ]
        )
    )


def _names_a_test(argument: str) -> bool:
    return (TESTS / argument.partition("::")[0]).is_file()


def _located(argument: str) -> str:
    return str(TESTS / argument) if _names_a_test(argument) else argument


def _reachable(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(_WAIT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True
