"""What does not belong into the log."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from grpc._cython import cygrpc
from wfe_persistence.cli.logs import log_to_stderr
from wfe_persistence.settings import Settings

log_to_stderr(Settings(log_format="json"))
log = logging.getLogger("grpc._cython.cygrpc")
for kind in (cygrpc.ExecuteBatchError, RuntimeError):
    try:
        raise kind("why")
    except Exception:
        log.exception("%s raised in core", kind.__name__)
log.error("a message of its own")
"""


def test_a_client_that_hangs_up_is_no_error_of_the_server() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line.split('"message": ')[1].split('"')[1] for line in done.stderr.splitlines()] == [
        "RuntimeError raised in core",
        "a message of its own",
    ]
