"""gRPC does not survive a fork: the child gets a clear error, or it works; it never hangs or dies.

Each program is a process of its own: its child ends by SIGALRM if it hangs.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.client.fake_store import FakeStore, answers
from wfe.persistence.v1 import store_pb2

PRELUDE = """
import asyncio, gc, os, signal, sys
from wfe_persistence_client import connect, connect_blocking

target = sys.argv[1]

def call(provider):
    return provider.get_store_info().namespace

async def connect_and_call():
    async with connect(target, timeout=20) as provider:
        return (await provider.get_store_info()).namespace

def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            print("child:", work(), flush=True)
        except RuntimeError as exc:
            print("child:", exc, flush=True)
        # Ends as programs do, not by os._exit, so that everything is released.
        sys.exit(0)
    status = os.waitpid(pid, 0)[1]
    print("status:", status, flush=True)

def connect_in_child():
    with connect_blocking(target, timeout=20) as provider:
        return call(provider)
"""

INHERITED = "forked; a connection does not survive a fork"
UNUSABLE = "gRPC cannot be used in this process"
WORKS = "child: n"

#: What the program does, and what its child says.
PROGRAMS: dict[str, tuple[str, str]] = {
    "an inherited provider": (
        """
with connect_blocking(target, timeout=3) as provider:
    call(provider)
    in_child(lambda: call(provider))
    call(provider)
""",
        INHERITED,
    ),
    "a copy of an inherited provider": (
        """
with connect_blocking(target) as provider:
    call(provider)
    in_child(lambda: call(provider.with_timeout(3)))
""",
        INHERITED,
    ),
    "an inherited async provider": (
        """
async def main():
    async with connect(target, timeout=3) as provider:
        await provider.get_store_info()
        in_child(lambda: asyncio.run(provider.get_store_info()))
        await provider.get_store_info()
asyncio.run(main())
""",
        INHERITED,
    ),
    "an inherited provider that is closed and released": (
        """
def main():
    provider = connect_blocking(target)
    call(provider)
    def release():
        nonlocal provider
        provider.close()
        provider = None
        gc.collect()
        return "released"
    in_child(release)
    call(provider)
    provider.close()
main()
""",
        "child: released",
    ),
    "an inherited provider that nobody touches": (
        """
with connect_blocking(target) as provider:
    call(provider)
    in_child(lambda: "idle")
""",
        "child: idle",
    ),
    "a new provider, while the parent has one": (
        """
with connect_blocking(target) as provider:
    call(provider)
    in_child(connect_in_child)
""",
        UNUSABLE,
    ),
    "a new async provider, while the parent has one": (
        """
with connect_blocking(target) as provider:
    call(provider)
    in_child(lambda: asyncio.run(connect_and_call()))
""",
        UNUSABLE,
    ),
    "a new provider in a grandchild": (
        """
with connect_blocking(target) as provider:
    call(provider)
    in_child(lambda: in_child(connect_in_child))
""",
        UNUSABLE,
    ),
    "a new provider, after the parent has closed its own": (
        """
for _ in range(3):
    with connect_blocking(target) as provider:
        call(provider)
    in_child(connect_in_child)
""",
        WORKS,
    ),
    "a new provider, after the parent could not connect": (
        """
from wfe_persistence_client import Unavailable
def main():
    with connect_blocking("unix:/nonexistent/socket", timeout=0.3) as provider:
        try:
            call(provider)
        except Unavailable:
            pass
    in_child(connect_in_child)
main()
""",
        WORKS,
    ),
    "a new async provider, after the parent has closed its own": (
        """
for _ in range(3):
    asyncio.run(connect_and_call())
    in_child(lambda: asyncio.run(connect_and_call()))
""",
        WORKS,
    ),
    "a new provider, of a parent without one": (
        "in_child(connect_in_child)\n",
        WORKS,
    ),
    "a spawned process, while the parent has a provider": (
        """
import subprocess
with connect_blocking(target) as provider:
    call(provider)
    if len(sys.argv) == 2:
        subprocess.run([sys.executable, sys.argv[0], target, "child"], check=True)
        print("status: 0")
    else:
        print("child:", call(provider))
""",
        WORKS,
    ),
}


#: gRPC's own support of forks is half on by default; it makes no difference.
CASES = [(name, None) for name in PROGRAMS] + [
    (name, support)
    for name in (
        "an inherited provider that is closed and released",
        "a new provider, after the parent has closed its own",
    )
    for support in ("0", "1")
]


@pytest.mark.parametrize(("name", "support"), CASES)
async def test_in_a_forked_process(
    store: FakeStore, tmp_path: Path, name: str, support: str | None
) -> None:
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse(namespace="n")))
    text, expected = PROGRAMS[name]
    program = tmp_path / "program.py"
    program.write_text(PRELUDE + text)
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    if support is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = support
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(program),
        store.target,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (data.decode() for data in await running.communicate())
    assert running.returncode == 0, err
    said = [line for line in out.splitlines() if line.startswith("child: ") and "None" not in line]
    assert said, (out, err)
    assert all(expected in line for line in said), out
    assert {line for line in out.splitlines() if line.startswith("status")} == {"status: 0"}
    assert "Traceback" not in err
