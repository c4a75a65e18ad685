"""The audit log: what stands in it, what can't get into it, and what becomes of its file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.message import Message

from tests.access.conftest import OWN, GuardedServer, bearer, running
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, failure_of
from tests.support.rpcs import RPCS, Rpc, valid_request
from tests.support.server import ServerProcess
from wfe.persistence.v1.command_pb2 import CompleteCommandsRequest
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest, DeleteWorkflowRequest
from wfe_persistence.access.role import Role
from wfe_persistence.errors import CannotServeError
from wfe_persistence.rpc import audit
from wfe_persistence.rpc.audit import ID_FIELDS, LEASE_FIELDS, MAX_IDS, Audit
from wfe_persistence.rpc.services import REQUIRED_ROLE

CANARY = "kanarienvogel"
WITHOUT_IDS = {"EnsureStoreExists", "TruncateAll", "RunRetention", "ImportRecords-fence"}
WRITES = [rpc for rpc in RPCS.values() if REQUIRED_ROLE[rpc.name] > Role.READER]


class Log:
    """The file, and the server that writes it."""

    def __init__(self, guarded: GuardedServer, file: Path) -> None:
        self.guarded = guarded
        self.file = file
        self._read = 0

    def metadata(self, name: str) -> Any:
        return [("wfe-namespace", OWN), bearer(self.guarded.tokens[name])]

    def entries(self) -> list[dict[str, Any]]:
        whole, _, _ = self.file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    async def entry(self, **expected: Any) -> dict[str, Any]:
        """Wait for the entry that has these values; it must be the only one."""
        found: list[dict[str, Any]] = []

        async def is_there() -> bool:
            found[:] = [e for e in self.entries() if expected.items() <= e.items()]
            return bool(found)

        await eventually(is_there)
        [entry] = found
        return entry


@pytest.fixture(scope="module")
def audited(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE access_audit")
    guarded = GuardedServer(tmp_path_factory.mktemp("audited"))
    file = guarded.directory / "audit.log"
    url = postgres_url.replace("/postgres?", "/access_audit?")
    with running(guarded, url, "--audit-log", str(file)):
        yield Log(guarded, file)
    assert '"message": "bug ' not in guarded.server.log()
    text = file.read_text()
    for token in guarded.tokens.values():
        assert token not in text


def replace_texts(message: Message, number: Iterator[int]) -> tuple[list[str], list[str]]:
    """Fill every text of a message: those that are ids with one value each, which must be logged,
    all others with canaries, which must not be. Returns both."""
    ids: list[str] = []
    canaries: list[str] = []
    name = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        is_id = field.name in ID_FIELDS.get(name, ())
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                value.clear()
                value[f"{CANARY}-k"] = f"{CANARY}-v"
                continue
            for item in value if field.is_repeated else [value]:
                more_ids, more_canaries = replace_texts(item, number)
                ids += more_ids
                canaries += more_canaries
        elif field.type == field.TYPE_STRING and field.name != "request_id":
            text = f"id{next(number)}" if is_id else f"{CANARY}-{next(number)}"
            (ids if is_id else canaries).append(text)
            if field.is_repeated:
                value[:] = [text]
            else:
                setattr(message, field.name, text)
    return ids, canaries


def has_leases(message: Message) -> bool:
    """Whether a message, or one in it, has a field that proves a lease."""
    return message.DESCRIPTOR.name in LEASE_FIELDS or any(
        has_leases(item)
        for field, value in message.ListFields()
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
        for item in (value if field.is_repeated else [value])
    )


@pytest.mark.parametrize("rpc", WRITES, ids=str)
async def test_every_write_is_logged_with_its_ids_and_nothing_else_of_the_request(
    audited: Log, rpc: Rpc
) -> None:
    request: Any = valid_request(rpc)
    if hasattr(request, "dry_run"):
        request.dry_run = True
    before = len(audited.entries())
    ids, _ = replace_texts(request, iter(range(10_000)))
    request_id = getattr(request, "request_id", "")
    async with connect(audited.guarded.server.address) as channel:
        await failure_of(
            channel.unary_unary(rpc.path)(
                request.SerializeToString(), metadata=audited.metadata("root")
            )
        )

    def logged_since() -> list[dict[str, Any]]:
        # What was written before the call may be logged later than it was answered.
        return [entry for entry in audited.entries()[before:] if entry["rpc"] == rpc.name]

    async def is_logged() -> bool:
        return bool(logged_since())

    await eventually(is_logged)
    [entry] = logged_since()
    logged = {text for texts in entry["ids"].values() for text in texts}
    leases = {text for text in logged if text.startswith("sha256:")}
    assert bool(logged) == (str(rpc) not in WITHOUT_IDS)
    if rpc.name == "ClaimCommands":  # what it has claimed, too, if there was something
        assert logged >= set(ids)
    else:
        assert logged - leases == set(ids)
        assert bool(leases) == (has_leases(request) or rpc.name == "AcquireLock")
    assert entry["rpc"] == rpc.name
    assert entry["principal"] == "token:root"
    assert entry["authenticated_by"] == "token"
    assert entry["peer"].startswith("ipv4:127.0.0.1:")
    assert entry["request_id"] == request_id
    assert entry["namespace"] == (None if rpc.name.endswith(("Namespace", "NamespaceSet")) else OWN)
    assert entry.get("dry_run", False) == hasattr(request, "dry_run")
    assert entry["time"].endswith("Z")
    assert CANARY not in audited.file.read_text()


def test_no_field_that_may_have_a_payload_or_a_secret_is_an_id() -> None:
    for name in {field for fields in ID_FIELDS.values() for field in fields}:
        assert not any(part in name for part in ("json", "token", "message", "description", "key"))


async def test_outcomes_and_the_ids_that_the_server_chose(audited: Log) -> None:
    async with connect(audited.guarded.server.address) as channel:
        api = Api(channel)
        host = audited.metadata("host")
        created = await api.workflows.CreateNewWorkflow(
            CreateNewWorkflowRequest(instance=make.instance(id="")), metadata=host
        )
        event = make.event(id="")
        event_id = (await api.events.CreateEvent(CreateEventRequest(event=event), metadata=host)).id
        await audited.entry(ids={"id": [created.id]}, outcome="OK", principal="token:host")
        await audited.entry(ids={"id": [event_id]}, outcome="OK", rpc="CreateEvent")
        delete = DeleteWorkflowRequest(id="no-such-workflow")
        await failure_of(
            api.workflows.DeleteWorkflow(delete, metadata=audited.metadata("operator"))
        )
        await audited.entry(ids={"id": ["no-such-workflow"]}, outcome="WORKFLOW_NOT_FOUND")
        # Of many ids the first ones.
        many = CompleteCommandsRequest(lease_tokens=[f"lease-{i}" for i in range(100)])
        await failure_of(api.commands.CompleteCommands(many, metadata=host))
        entry = await audited.entry(more_ids=True)
        assert len(entry["ids"]["lease_tokens"]) == MAX_IDS


async def test_reads_are_logged_if_they_are_refused_only(audited: Log) -> None:
    before = len(audited.entries())
    async with connect(audited.guarded.server.address) as channel:
        info = Api(channel).store.GetStoreInfo
        await info(GetStoreInfoRequest(), metadata=audited.metadata("reader"))
        await failure_of(info(GetStoreInfoRequest(), metadata=audited.metadata("stranger")))
        await failure_of(info(GetStoreInfoRequest()))
        await failure_of(info(GetStoreInfoRequest(), metadata=[("authorization", "Bearer x")]))
    await audited.entry(rpc="GetStoreInfo", outcome="CREDENTIALS_INVALID")
    denied, missing, bad = audited.entries()[before:]
    assert (denied["outcome"], denied["principal"]) == ("ACCESS_DENIED", "token:stranger")
    assert (missing["outcome"], missing["principal"]) == ("CREDENTIALS_REQUIRED", None)
    assert (bad["outcome"], bad["authenticated_by"]) == ("CREDENTIALS_INVALID", None)


async def test_hostile_ids_can_not_forge_lines_or_terminals(audited: Log) -> None:
    hostile = 'x\n{"outcome":"OK"}\r\x1b[2J\x7f\u2028\u202e\x85"'
    before = len(audited.entries())
    async with connect(audited.guarded.server.address) as channel:
        api = Api(channel)
        metadata = audited.metadata("operator")
        for id_ in (hostile, "é" * 5000):
            request = DeleteWorkflowRequest(id=id_)
            await failure_of(api.workflows.DeleteWorkflow(request, metadata=metadata))

    async def is_logged() -> bool:
        return len(audited.entries()) == before + 2

    await eventually(is_logged)
    first, second = audited.entries()[before:]
    assert first["ids"] == {"id": [hostile]}
    assert second["ids"] == {"id": ["é" * 64]}
    assert all(byte == 10 or 32 <= byte < 127 for byte in audited.file.read_bytes())


async def test_a_write_whose_client_hangs_up_is_logged(audited: Log, postgres_url: str) -> None:
    async with connect(audited.guarded.server.address) as channel:
        with psycopg.connect(audited.guarded.server_url) as connection:
            connection.execute("LOCK TABLE wfc_own.workflows")
            workflow = make.instance()
            call: Any = Api(channel).workflows.CreateNewWorkflow(
                CreateNewWorkflowRequest(instance=workflow), metadata=audited.metadata("host")
            )

            async def waits() -> bool:
                row = connection.execute(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted"
                ).fetchone()
                return row is not None and row[0] > 0

            await eventually(waits)
            call.cancel()
            await audited.entry(ids={"instance.id": [workflow.id]}, outcome="CANCELLED")


async def test_the_file_is_rotated_by_a_rename_or_by_sighup_and_no_line_is_lost(
    audited: Log,
) -> None:
    stopped = False
    sent: list[str] = []
    old = [audited.file.with_suffix(f".{i}") for i in range(4)]
    async with connect(audited.guarded.server.address) as channel:
        api = Api(channel)

        async def load() -> None:
            while not stopped:
                id_ = make.new_id()
                request = DeleteWorkflowRequest(id=id_)
                metadata = audited.metadata("operator")
                await failure_of(api.workflows.DeleteWorkflow(request, metadata=metadata))
                sent.append(id_)

        async def is_new() -> bool:
            return audited.file.exists() and audited.file.stat().st_size > 0

        async with asyncio.TaskGroup() as group:
            group.create_task(load())
            try:
                for i, name in enumerate(old):
                    await eventually(is_new)
                    audited.file.rename(name)
                    if i % 2:
                        audited.guarded.server.process.send_signal(signal.SIGHUP)
                await eventually(is_new)
            finally:
                stopped = True
        await audited.entry(ids={"id": [sent[-1]]})
    text = "".join(file.read_text() for file in (*old, audited.file))
    logged = [json.loads(line)["ids"].get("id", [""])[0] for line in text.splitlines()]
    assert [id_ for id_ in logged if id_ in set(sent)] == sent
    assert audited.file.stat().st_mode & 0o777 == 0o600
    for file in old:  # whoever comes next finds all in one
        file.unlink()


def test_a_file_that_can_not_be_opened_is_told_of_at_the_start(tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path / "log", "--audit-log", str(tmp_path / "no" / "file"),
        "--db-url", "postgresql://x@127.0.0.1:1/x",
    )  # fmt: skip
    with pytest.raises(AssertionError, match=r"audit-log: .*: No such file or directory"):
        server.start()


def test_a_pipe_without_a_reader_does_not_hold_up_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotServeError, match="audit-log: "):
        Audit(str(tmp_path / "pipe"))


async def test_a_full_disk_loses_lines_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full in the middle of the second line, and for the third; then there is room."""
    write = os.write
    file = tmp_path / "audit.log"
    log = Audit(str(file))
    room = 15

    def write_what_fits(fd: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        written = write(fd, data[:room])
        room -= written
        return written

    async def tried() -> bool:
        return not log._lines and "No space left" in caplog.text

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_what_fits)
        log.write('{"n":1}\n')

        async def first() -> bool:
            return file.read_text() == '{"n":1}\n'

        await eventually(first)
        log.write('{"long":2}\n')
        await eventually(tried)
        log.write('{"n":3}\n')

        async def third_is_lost() -> bool:
            return log._failed == 2

        await eventually(third_is_lost)
    log.write('{"n":4}\n')
    log.close()
    lines = file.read_text().splitlines()
    assert (lines[0], lines[1], lines[2]) == ('{"n":1}', '{"long"', '{"n":4}')
    assert json.loads(lines[3])["lost"] == 2
    assert caplog.text.count("lines are lost") == 1


async def test_lines_that_nobody_takes_in_time_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_MAX_WAITING", 10)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = Audit(str(tmp_path / "pipe"))
    try:
        log._lines.extend(["x\n"] * 10)
        log.write("y\n")
        assert log._dropped == 1
    finally:
        log.close()
        assert b'"lost":1' in os.read(reader, 65_536)
        os.close(reader)


async def test_a_full_device_does_not_stop_the_server(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE access_audit_full")
    url = postgres_url.replace("/postgres?", "/access_audit_full?")
    server = ServerProcess(tmp_path / "log", "--db-url", url, "--audit-log", "/dev/full")
    with server:
        async with connect(server.address) as channel:
            for _ in range(5):
                await Api(channel).create(make.instance())

        async def told() -> bool:
            return server.log().count("audit log /dev/full: No space left on device") == 1

        await eventually(told)


def test_dash_is_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    log = Audit("-")
    log.write('{"n":1}\n')
    log.close()
    assert capfd.readouterr().out == '{"n":1}\n'
