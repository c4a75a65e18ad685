"""`wfe-persistence export`: a namespace, or a part of it, as lines of JSON."""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.filters import STATUSES
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.progress import Progress, progress_option
from wfe_persistence_cli.status import EPILOG, INTERRUPTED
from wfe_persistence_cli.times import Since

if TYPE_CHECKING:
    import grpc

    from wfe.persistence.v1 import transfer_pb2

KINDS: Final = (
    "workflow", "subscription", "event", "error", "command", "queue", "queue_item",
    "definition_sequence", "retention_policy", "name_holder",
)  # fmt: skip
STDIO: Final = "-"

# How long the server holds the snapshot if the connection breaks, and how often to try meanwhile.
_HOLD_SECONDS: Final = 60
_PAUSE_SECONDS: Final = 1.0


class FileError(Exception):
    """A file can't be used; the message says which and why."""


class _Output:
    """Where lines go: a file that has its name only once it is complete, or stdout."""

    def __init__(self, name: str) -> None:
        self._path = None if name == STDIO else Path(name)
        self._part = Path(f"{name}.part")
        self._file: BinaryIO
        self._open()

    def _open(self) -> None:
        if self._path is None:
            self._file = sys.stdout.buffer
            return
        try:
            raw = self._part.open("wb")
        except OSError as exc:
            raise FileError(f"{self._part}: {exc.strerror}") from None
        if self._path.suffix == ".gz":
            # No name and no time in it: the same records are the same bytes.
            zipped: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0, compresslevel=6)
            zipped.myfileobj = raw  # so that it is closed, too
            self._file = zipped
        else:
            self._file = raw

    def write(self, data: bytes) -> None:
        """Write some lines. Raises FileError."""
        try:
            self._file.write(data)
        except OSError as exc:
            raise FileError(f"{self._path or 'stdout'}: {exc.strerror}") from None

    def begin_anew(self) -> bool:
        """Forget what was written; false: it is gone already."""
        if self._path is None:
            return False
        self._file.close()
        self._open()
        return True

    def finish(self) -> None:
        """It is complete. Raises FileError."""
        try:
            self._file.flush()
            if self._path is None:
                return
            self._file.close()
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            self._part.replace(self._path)
        except OSError as exc:
            raise FileError(f"{self._path or 'stdout'}: {exc.strerror}") from None

    def discard(self) -> None:
        """It will not be complete."""
        if self._path is not None:
            with suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Write a namespace to a file.")
@click.argument("file", metavar="FILE", default=STDIO)
@calls_server
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    help="Only records of this kind; may be repeated.",
)
@click.option("--id", "ids", multiple=True, help="Only this workflow; may be repeated.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES),
    multiple=True,
    help="Only workflows with this status; may be repeated.",
)
@click.option(
    "--definition", "definitions", multiple=True, help="Only workflows of it; may be repeated."
)
@click.option(
    "--created-from",
    type=Since(),
    help="Only workflows created then or later: a time (UTC, unless it says otherwise) or an age.",
)
@click.option(
    "--created-before",
    type=Since(),
    help="Only workflows created before then.",
)
@progress_option
def export(
    call: Caller,
    *,
    file: str,
    kinds: tuple[str, ...],
    ids: tuple[str, ...],
    statuses: tuple[str, ...],
    definitions: tuple[str, ...],
    created_from: datetime | None,
    created_before: datetime | None,
    progress: bool | None,
) -> None:
    """Write the records of a namespace, as they are at one moment, to FILE (default: -, stdout).

    A record is a line of JSON; a FILE that ends with .gz is compressed. It appears once it is
    complete: until then it is FILE.part, which is deleted on Ctrl-C and on errors. If the
    connection breaks, the export goes on where it was, or begins anew. Of selected workflows, their
    subscriptions, errors and commands are exported, too.

    \b
    Examples:
      wfe-persistence export prod.jsonl.gz --namespace prod
      wfe-persistence export --status complete --created-before 2026-01-01 >old.jsonl
    """
    from wfe.persistence.v1 import transfer_pb2 as pb
    from wfe.persistence.v1.workflow_pb2 import WorkflowStatus

    call.of_one_namespace()
    request = pb.ExportRecordsRequest(
        kinds=[pb.RecordKind.Value(f"RECORD_KIND_{kind.upper()}") for kind in dict.fromkeys(kinds)]
    )
    if ids or statuses or definitions or created_from or created_before:
        selected = request.workflows
        selected.ids.extend(ids)
        selected.statuses.extend(
            WorkflowStatus.Value(f"WORKFLOW_STATUS_{status.upper()}") for status in statuses
        )
        selected.workflow_definition_ids.extend(definitions)
        for field, at in (
            ("create_time_from", created_from),
            ("create_time_before", created_before),
        ):
            if at is not None:
                getattr(selected, field).FromDatetime(at)
    request.hold.FromSeconds(_HOLD_SECONDS)
    try:
        output = _Output(file)
        try:
            count, seconds = _run(call, request, output, progress)
            output.finish()
        except BaseException:
            output.discard()
            raise
    except FileError as exc:
        click.echo(str(exc), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        said = "what was written is not complete" if file == STDIO else "nothing was written"
        click.echo(f"interrupted: {said}", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"exported {count} records in {seconds:.1f} s", err=True)


def _run(
    call: Caller, request: transfer_pb2.ExportRecordsRequest, output: _Output, shown_: bool | None
) -> tuple[int, float]:
    """Write all records; how many there are, and the seconds that it took."""
    from wfe_persistence_cli.json_lines import to_line

    count = 0
    with Progress("exporting", shown=shown_) as progress, call.channel() as channel:
        stream = _Stream(call, channel, request)
        with stream.released_on_interruption():
            for response in stream:
                if response is None:
                    if not output.begin_anew():
                        raise FileError("stdout: the export can't be resumed; begin anew")
                    count = 0
                    continue
                lines = "".join(f"{to_line(record)}\n" for record in response.records)
                output.write(lines.encode())
                count += len(response.records)
                progress.at(count, response.estimated_records or None)
        return count, progress.seconds


class _Stream:
    """The responses of an export, resumed for as long as the snapshot is held; None: from here on
    it has begun anew. Raises RpcError."""

    def __init__(
        self, call: Caller, channel: grpc.Channel, request: transfer_pb2.ExportRecordsRequest
    ) -> None:
        from wfe.persistence.v1.transfer_pb2_grpc import TransferServiceStub

        self._call = call
        self._request = request
        self._stub = TransferServiceStub(channel)
        self._running: Any = None

    def __iter__(self) -> Iterator[transfer_pb2.ExportRecordsResponse | None]:
        import grpc

        heard = time.monotonic()
        while True:
            self._running = self._stub.ExportRecords(self._request, metadata=self._call.metadata)
            try:
                for response in self._running:
                    self._request.after = response.cursor
                    yield response
                    heard = time.monotonic()
            except grpc.RpcError as exc:
                error: Any = exc
                if _is_expired(error) and self._request.after:
                    click.echo("the snapshot is gone: beginning anew", err=True)
                    self._request.after = ""
                    yield None
                elif not is_passing(error) or time.monotonic() > heard + max(
                    _HOLD_SECONDS, self._call.timeout
                ):
                    raise
                else:
                    click.echo(f"{one_line(error)}; trying again", err=True)
                    time.sleep(_PAUSE_SECONDS)
            else:
                return

    @contextmanager
    def released_on_interruption(self) -> Iterator[None]:
        """Have the server not hold the snapshot if this is left by an error."""
        import grpc

        try:
            yield
        except BaseException:
            if self._running is not None:
                self._running.cancel()
            if self._request.after:
                self._request.ClearField("hold")
                with suppress(grpc.RpcError):
                    last = self._stub.ExportRecords(
                        self._request, metadata=self._call.metadata, timeout=self._call.timeout
                    )
                    next(iter(last))
                    last.cancel()
            raise


def is_passing(error: Any) -> bool:
    """Whether a call that failed so may succeed later."""
    import grpc

    code = error.code()
    return (
        code == grpc.StatusCode.UNAVAILABLE
        or (
            code == grpc.StatusCode.RESOURCE_EXHAUSTED
            and reason(error) in ("READER_TOO_SLOW", "ADMINISTRATION_BUSY", "TOO_MANY_CALLS")
        )
        or (code == grpc.StatusCode.ABORTED and reason(error) != "REVISION_MISMATCH")
    )


def one_line(error: Any) -> str:
    """A call's error on one line."""
    return f"{error.code().name}: {error.details()}"


def _is_expired(error: Any) -> bool:
    return reason(error) == "CURSOR_EXPIRED"


def reason(error: Any) -> str:
    """The ErrorReason of a call's error; empty: it has none."""
    from google.rpc import error_details_pb2, status_pb2

    if not hasattr(error, "trailing_metadata"):
        return ""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if packed.Unpack(info):
                    return str(info.reason)
    return ""
