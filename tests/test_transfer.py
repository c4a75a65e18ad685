"""`wfe-persistence export` and `import`: files, pipes, and what goes wrong."""
# ruff: noqa: ASYNC220, ASYNC221, ASYNC240 — the programs that are run are what is tested

from __future__ import annotations

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from google.protobuf import json_format
from hypothesis import given, settings

from tests.support import strategies
from tests.support.api import Api, connect
from tests.support.server import ServerProcess
from tests.support.transfer import export, fill, fill_with_workflows
from tests.support.waiting import wait_for
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.transfer_pb2 import Record
from wfe_persistence_cli.json_lines import from_line, to_line

PROGRAM = [sys.executable, "-m", "wfe_persistence"]


# Lines.


@settings(deadline=None, max_examples=300)
@given(strategies.records())
def test_a_record_is_a_line_that_is_read_back_the_same(record: Record) -> None:
    line = to_line(record)
    assert "\n" not in line
    read = Record()
    from_line(line.encode(), read)
    _truncate(record)
    assert read == record
    # Any protobuf library reads it, too; and ours what others write.
    assert json_format.Parse(line, Record()) == record
    for names in (True, False):
        other = Record()
        from_line(json_format.MessageToJson(record, preserving_proto_field_name=names), other)
        assert other == record
    assert to_line(read) == line


def _truncate(message: object) -> None:
    """Times have microseconds."""
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else [value]:
            if field.message_type.full_name == "google.protobuf.Timestamp":
                each.nanos -= each.nanos % 1000
            else:
                _truncate(each)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "is not JSON"),
        ("[]", "the line: is not an object"),
        ("{", "is not JSON"),
        ('{"evnt": {}}', "evnt: there is no such field"),
        ('{"event": {"idd": ""}}', "event.idd: there is no such field"),
        ('{"event": []}', "event: is not an object"),
        ('{"event": {"id": 1}}', "event.id: is not a string"),
        ('{"event": {"id": "\\ud800"}}', "event.id: has a lone surrogate"),
        ('{"event": {"is_processed": 1}}', "event.is_processed: is not true or false"),
        ('{"event": {"event_time": "yesterday"}}', "event.event_time: "),
        ('{"command": {"execute_time": 1.5}}', "command.execute_time: is not a whole number"),
        ('{"command": {"execute_time": "99999999999999999999"}}', "command.execute_time: "),
        ('{"command": {"command_name": "RUN"}}', "command.command_name: is not the name"),
        ('{"creation_hash": "***"}', "creation_hash: "),
        ('{"workflow": {"instance": {"execution_pointers": {}}}}', "is not a list"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        from_line(line, Record())
    assert str(caught.value).startswith(why) or why in str(caught.value)


# Commands.


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        yield server


@pytest.fixture
async def api(server: ServerProcess) -> AsyncIterator[Api]:
    async with connect(server.address) as channel:
        yield Api(channel)


@pytest.fixture
async def copy(server: ServerProcess, api: Api) -> AsyncIterator[Api]:
    """An empty namespace `copy`."""
    await api.store.CreateNamespace(CreateNamespaceRequest(name="copy"))
    async with connect(server.address, namespace="copy") as channel:
        yield Api(channel)


def run(
    server: ServerProcess, *arguments: str, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *arguments, "--target", server.address],
        capture_output=True,
        timeout=120,
        check=False,
        input=stdin,
    )


def succeeds(
    server: ServerProcess, *arguments: str, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    done = run(server, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done


async def test_export_import_export_is_the_same_file(
    server: ServerProcess, api: Api, tmp_path: Path
) -> None:
    await fill(api)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert b"exported 34 records" in succeeds(server, "export", str(first)).stderr
    copy = ("--namespace", "copy")
    done = succeeds(server, "import", str(first), *copy, "--create-namespace")
    assert b"imported 32 records" in done.stderr
    succeeds(server, "export", str(second), *copy)
    assert first.read_bytes() == second.read_bytes()
    again = succeeds(server, "import", str(first), *copy)
    assert b"imported 0 records" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first.jsonl", "log", "second.jsonl",
    ]  # fmt: skip


async def test_pipes_and_compressed_files(
    server: ServerProcess, api: Api, copy: Api, tmp_path: Path
) -> None:
    await fill(api)
    plain = succeeds(server, "export").stdout
    zipped, again = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    succeeds(server, "export", str(zipped))
    succeeds(server, "export", str(again))
    assert zipped.read_bytes() == again.read_bytes()
    assert gzip.decompress(zipped.read_bytes()) == plain
    succeeds(server, "import", "-", "--namespace", "copy", stdin=plain)
    succeeds(server, "import", str(zipped), "--namespace", "copy")
    piped = shlex.join([*PROGRAM, "export", "--target", server.address, "--namespace", "copy"])
    into = shlex.join(
        [*PROGRAM, "import", "--target", server.address, "--namespace", "more",
         "--create-namespace"]
    )  # fmt: skip
    subprocess.run(["sh", "-c", f"{piped} | {into}"], check=True, timeout=120)
    assert succeeds(server, "export", "-", "--namespace", "more").stdout == plain
    assert await export(copy)


async def test_a_selection_has_what_belongs_to_it(server: ServerProcess, api: Api) -> None:
    await fill(api)

    def kinds(*arguments: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in succeeds(server, "export", *arguments).stdout.splitlines():
            for kind, value in json.loads(line).items():
                if kind != "creation_hash":
                    instance = value.get("instance", value.get("error", value))
                    found.setdefault(kind, []).append(
                        instance.get("id") or instance.get("workflow_id") or instance.get("data")
                    )
        del found["fence"]
        return found

    assert kinds("--id", "a") == {
        "workflow": ["a"], "subscription": ["B", "free", "held"], "error": ["a", "a", "a"],
        "command": ["a"],
    }  # fmt: skip
    assert kinds("--id", "a", "--kind", "workflow") == {"workflow": ["a"]}
    assert set(kinds("--id", "a", "--kind", "event", "--kind", "workflow")) == {"workflow", "event"}
    assert kinds("--id", "no such") == {}
    assert len(kinds("--status", "complete")["workflow"]) == 1
    assert len(kinds("--definition", "order")["workflow"]) == 7
    assert kinds("--created-before", "2026-01-01") == {}
    assert len(kinds("--created-from", "2026-01-01T12:00:00")["workflow"]) == 7
    assert set(kinds("--kind", "queue_item")) == {"queue_item"}


async def test_conflicts_are_refused_or_skipped(server: ServerProcess, api: Api, copy: Api) -> None:
    await fill(api)
    exported = succeeds(server, "export").stdout
    before = succeeds(server, "export", "-", "--namespace", "copy").stdout
    changed = exported.replace(b'\\"new\\"', b'\\"newer\\"')
    assert changed != exported
    succeeds(server, "import", "--namespace", "copy", stdin=changed)
    stored = succeeds(server, "export", "-", "--namespace", "copy").stdout
    refused = run(server, "import", "--namespace", "copy", stdin=exported)
    line = 1 + [b"newer" in each for each in changed.split(b"\n")].index(True)
    assert refused.returncode == 3
    assert f"line {line}: ALREADY_EXISTS".encode() in refused.stderr
    assert b"go on with --from-line 1" in refused.stderr
    skipped = succeeds(
        server, "import", "--namespace", "copy", "--on-conflict", "skip", stdin=exported
    )
    assert b"1 were skipped" in skipped.stderr
    assert succeeds(server, "export", "-", "--namespace", "copy").stdout == stored != before


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"{\n", b"line 1: is not JSON"),
        (b'{"event": {"id": "e"}}\n', b"line 1: INVALID_ARGUMENT: records[0].event."),
        (b'\n\n{"fence": {}}\n{"evnt": {}}\n', b"line 4: evnt: there is no such field"),
        (b'{"fence": {"epoch": "1"}}', b"the last line is cut off"),
        (b"\xff\n", b"line 1: is not JSON"),
    ],
)
async def test_bad_lines_are_named(
    server: ServerProcess, api: Api, stdin: bytes, said: bytes
) -> None:
    done = run(server, "import", stdin=stdin)
    assert done.returncode == 1
    assert said in done.stderr, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(await export(api)) == 2  # the fences


async def test_an_empty_file_is_imported(server: ServerProcess) -> None:
    assert b"imported 0 records" in succeeds(server, "import", stdin=b"").stderr
    assert b"imported 0 records" in succeeds(server, "import", stdin=b"\n\n").stderr


async def test_import_goes_on_at_a_line(server: ServerProcess, api: Api, copy: Api) -> None:
    await fill(api)
    lines = succeeds(server, "export").stdout.splitlines(keepends=True)
    succeeds(server, "import", "--namespace", "copy", stdin=b"".join(lines[:10]))
    rest = succeeds(
        server, "import", "--namespace", "copy", "--from-line", "11", stdin=b"".join(lines)
    )
    assert b"0 were there" not in rest.stderr or b"imported" in rest.stderr
    assert succeeds(server, "export", "-", "--namespace", "copy").stdout == b"".join(lines)
    assert await export(copy)


def test_what_can_not_be_written_or_read_is_said(server: ServerProcess, tmp_path: Path) -> None:
    for arguments in (
        ("export", str(tmp_path / "no" / "file")),
        ("import", str(tmp_path / "no file")),
        ("import", str(tmp_path)),
    ):
        done = run(server, *arguments)
        assert done.returncode == 1
        assert str(tmp_path).encode() in done.stderr
        assert b"Traceback" not in done.stderr
    bad = tmp_path / "bad.gz"
    bad.write_bytes(b"not compressed")
    done = run(server, "import", str(bad))
    assert done.returncode == 1
    assert b"bad.gz: " in done.stderr
    refused = run(server, "export", "-", "--namespace", "absent")
    assert refused.returncode == 4
    assert refused.stderr.startswith(b"NOT_FOUND: ")
    assert refused.stdout == b""


async def test_ctrl_c_leaves_nothing_behind(
    server: ServerProcess, api: Api, copy: Api, database_url: str, tmp_path: Path
) -> None:
    fill_with_workflows(database_url, 30_000)
    file = tmp_path / "all.jsonl"
    part = tmp_path / "all.jsonl.part"

    def sessions() -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL"
                " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            ).fetchone()
        assert found is not None
        return int(found[0])

    def interrupt(*arguments: str, when: object) -> bytes:
        command = [*PROGRAM, *arguments, "--target", server.address]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            wait_for(when)  # type: ignore[arg-type]
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            said = process.stderr.read()
            assert process.wait(60) == 130, said
        return said

    def begun() -> bool:
        return part.exists() and part.stat().st_size > 0

    assert b"nothing was written" in interrupt("export", str(file), when=begun)
    assert not part.exists()
    assert not file.exists()
    wait_for(lambda: sessions() == 0, 10)  # and the snapshot is not held
    succeeds(server, "export", str(file))

    def stored() -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            [count] = connection.execute("SELECT count(*) FROM wfc_copy.workflows").fetchone() or (
                0,
            )
        return int(count)

    into = ("--namespace", "copy")
    said = interrupt("import", str(file), *into, when=lambda: stored() > 0)
    assert b"go on with --from-line" in said
    assert 0 < stored() < 30_000
    line = said.split(b"--from-line ")[1].split(b",")[0].decode()
    succeeds(server, "import", str(file), *into, "--from-line", line)
    again = succeeds(server, "export", "-", *into).stdout
    assert again == file.read_bytes()
    assert await export(copy, kinds=[1])


async def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    server: ServerProcess, database_url: str, tmp_path: Path
) -> None:
    fill_with_workflows(database_url, 100)
    quiet = succeeds(server, "export", str(tmp_path / "a"))
    assert len(quiet.stderr.splitlines()) == 1
    ours, theirs = os.openpty()
    command = [*PROGRAM, "export", str(tmp_path / "b"), "--target", server.address]
    with subprocess.Popen(command, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 1000):
                said += chunk
        except OSError:
            pass  # the other end was closed
        assert process.wait(60) == 0
    os.close(ours)
    assert b"exporting" in said
    assert b"102" in said
    assert b"exported 102 records" in said
