"""`wfe-persistence import`: lines of JSON, as `export` writes them, into a namespace."""

from __future__ import annotations

import gzip
import queue
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.commands.export import STDIO, FileError, is_passing, one_line, reason
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.progress import Progress, progress_option
from wfe_persistence_cli.status import CONFLICT, EPILOG, INTERRUPTED

_BATCH_RECORDS: Final = 500
_BATCH_BYTES: Final = 262_144
# How many requests are under way: the server works on one while the next ones come.
_WINDOW: Final = 4
_RETRY_SECONDS: Final = 60.0
_CREATION_SECONDS: Final = 60.0
# After so long without anything to send, something is sent all the same.
_IDLE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Batch:
    """A request, and the lines that it has."""

    first_line: int
    last_line: int = 0
    request: Any = None
    lines: list[int] = field(default_factory=list)
    """Of each record, the number of its line."""
    is_complete: bool = True
    """Whether what it ends with is: after its answer it is stored."""
    was_answered: bool = False


@dataclass(slots=True)
class _Counts:
    stored: int = 0
    unchanged: int = 0
    skipped: int = 0
    line: int = 0
    """The last line up to which all is stored."""

    def add(self, answer: Any) -> None:
        """A request has been stored."""
        self.stored += answer.stored
        self.unchanged += answer.unchanged
        self.skipped += answer.skipped


@click.command(
    "import", cls=ClientCommand, epilog=EPILOG, short_help="Store the records of a file."
)
@click.argument("file", metavar="FILE", default=STDIO)
@calls_server
@click.option(
    "--on-conflict",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="What to do with a record for which the store has another one: end there, or keep that.",
)
@click.option(
    "--from-line",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Begin at this line: where a broken import said that it can go on.",
)
@click.option("--create-namespace", is_flag=True, help="Create the namespace if it is not there.")
@progress_option
def import_(
    call: Caller,
    *,
    file: str,
    on_conflict: str,
    from_line: int,
    create_namespace: bool,
    progress: bool | None,
) -> None:
    """Store the records of FILE (-, the default: stdin) in a namespace; .gz is decompressed.

    What is there already, the same, is left as it is, so an import can be repeated. If the
    connection breaks, it goes on behind the last line that the server has confirmed. Have no hosts
    work in the namespace meanwhile.

    \b
    Examples:
      wfe-persistence import prod.jsonl.gz --namespace copy --create-namespace
      wfe-persistence export --target a:50051 | wfe-persistence import --target b:50051
    """
    import grpc

    from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest

    call.of_one_namespace()
    if create_namespace:
        request = CreateNamespaceRequest(name=call.namespace)
        call("CreateNamespace", request, at_least=_CREATION_SECONDS)
    counts = _Counts(line=from_line - 1)
    try:
        with _lines_of(file) as lines, Progress("importing", shown=progress) as bar:
            _run(call, lines, from_line, skip=on_conflict == "skip", counts=counts, bar=bar)
    except FileError as exc:
        _tell(counts, str(exc))
        sys.exit(CONFLICT if reason(exc.__cause__) == "RECORD_CONFLICT" else 1)
    except grpc.RpcError as exc:
        error: Any = exc
        _tell(counts, one_line(error))
        sys.exit(CONFLICT if reason(error) == "RECORD_CONFLICT" else 1)
    except KeyboardInterrupt:
        _tell(counts, "interrupted")
        sys.exit(INTERRUPTED)
    click.echo(
        f"imported {counts.stored} records in {bar.seconds:.1f} s; "
        f"{counts.unchanged} were there, {counts.skipped} were skipped",
        err=True,
    )


def _tell(counts: _Counts, error: str) -> None:
    click.echo(error, err=True)
    click.echo(
        f"{counts.stored} records have been stored; go on with --from-line {counts.line + 1}, "
        "or repeat the import",
        err=True,
    )


@contextmanager
def _lines_of(name: str) -> Iterator[Iterator[bytes]]:
    from wfe_persistence_cli.json_lines import lines

    file: BinaryIO
    try:
        if name == STDIO:
            yield lines(sys.stdin.buffer)
            return
        with Path(name).open("rb") as file:
            yield lines(gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file)
    except (OSError, EOFError, gzip.BadGzipFile) as exc:
        raise FileError(f"{name}: {getattr(exc, 'strerror', None) or exc}") from None


def _batches(lines: Iterator[bytes], from_line: int, *, skip: bool) -> Iterator[_Batch]:
    """The records of a file in requests. Raises FileError."""
    from wfe.persistence.v1 import transfer_pb2 as pb
    from wfe_persistence_cli.json_lines import from_line as parse

    policy = pb.CONFLICT_POLICY_SKIP if skip else pb.CONFLICT_POLICY_REFUSE
    batch, size = _Batch(from_line), 0
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if number < from_line or not line.strip():
                continue
            if (
                batch.request is None
                or len(batch.lines) >= _BATCH_RECORDS
                or (batch.lines and size + len(line) > _BATCH_BYTES)
            ):
                if batch.lines:
                    yield batch
                batch, size = _Batch(number, request=pb.ImportRecordsRequest()), 0
                batch.request.on_conflict = policy
            record = batch.request.records.add()
            parse(line, record)
            batch.lines.append(number)
            batch.last_line = number
            size += len(line)
            kind: Any = getattr(record, record.WhichOneof("record") or "", None)
            batch.is_complete = not getattr(kind, "is_continued", False)
    except ValueError as exc:
        raise FileError(f"line {max(number, 1)}: {exc}") from None
    if batch.lines:
        yield batch


def _run(
    call: Caller,
    lines: Iterator[bytes],
    from_line: int,
    *,
    skip: bool,
    counts: _Counts,
    bar: Progress,
) -> None:
    import grpc

    source = _Source(_batches(lines, from_line, skip=skip))
    unconfirmed: deque[_Batch] = deque()
    heard = time.monotonic()
    done = 0
    with call.channel() as channel:
        while True:
            attempt = _Attempt(call, channel, source, unconfirmed)
            pending: list[Any] = []
            try:
                for batch, answer in attempt:
                    heard = time.monotonic()
                    if not batch.lines:
                        continue
                    pending.append(answer)
                    if batch.is_complete:
                        for each in pending:
                            counts.add(each)
                        pending.clear()
                        counts.line = batch.last_line
                    done += len(batch.lines)
                    bar.at(done)
            except grpc.RpcError as exc:
                error: Any = exc
                done -= sum(len(batch.lines) for batch in unconfirmed if batch.was_answered)
                if not is_passing(error) or time.monotonic() > heard + max(
                    _RETRY_SECONDS, call.timeout
                ):
                    if line := attempt.line_of(error):
                        raise FileError(f"line {line}: {one_line(error)}") from exc
                    raise
                click.echo(f"{one_line(error)}; trying again", err=True)
                time.sleep(_PAUSE_SECONDS)
            else:
                if source.error is not None:
                    raise source.error
                return


class _Source:
    """Reads a file ahead, in a thread."""

    def __init__(self, batches: Iterator[_Batch]) -> None:
        self._batches = batches
        self._read: queue.Queue[_Batch | None] = queue.Queue(_WINDOW)
        self._ended = False
        self.error: BaseException | None = None
        """Why there are no more batches: the file is bad."""
        threading.Thread(target=self._run, name="read", daemon=True).start()

    def _run(self) -> None:
        try:
            for batch in self._batches:
                self._read.put(batch)
        except BaseException as exc:
            self.error = exc
        self._read.put(None)

    def take(self, seconds: float) -> _Batch | None:
        """The next batch; None: there are no more. Raises queue.Empty if none comes in time."""
        if self._ended:
            return None
        batch = self._read.get(timeout=seconds)
        self._ended = batch is None
        return batch


class _Attempt:
    """One stream: what has not been confirmed is sent again, then the rest."""

    def __init__(
        self, call: Caller, channel: Any, source: _Source, unconfirmed: deque[_Batch]
    ) -> None:
        self._call = call
        self._channel = channel
        self._source = source
        self._unconfirmed = unconfirmed
        self._sent: deque[_Batch] = deque()
        self._room = threading.Semaphore(_WINDOW)
        self._taking = threading.Lock()
        self._ended = False

    def __iter__(self) -> Iterator[tuple[_Batch, Any]]:
        from wfe.persistence.v1.transfer_pb2_grpc import TransferServiceStub

        stream = TransferServiceStub(self._channel).ImportRecords(
            self._requests(list(self._unconfirmed)), metadata=self._call.metadata
        )
        try:
            for answer in stream:
                batch = self._sent.popleft()
                batch.was_answered = True
                if batch.lines and batch.is_complete:
                    # What came before in parts is stored with it.
                    while self._unconfirmed.popleft() is not batch:
                        pass
                self._room.release()
                yield batch, answer
        finally:
            self._ended = True
            stream.cancel()
            with self._taking:
                pass  # from now on nothing is taken for this stream

    def line_of(self, error: Any) -> int:
        """The line that an error is about; 0: about none."""
        found = re.search(r"records\[(\d+)\]", error.details() or "")
        lines = self._sent[0].lines if self._sent else []
        return lines[int(found[1])] if found and int(found[1]) < len(lines) else 0

    def _requests(self, again: list[_Batch]) -> Iterator[Any]:
        """What is sent; gRPC runs it in a thread."""
        from wfe.persistence.v1 import transfer_pb2 as pb

        # Even if there is nothing to import, the server says whether it may be.
        for batch in (_Batch(0, request=pb.ImportRecordsRequest()), *again):
            batch.was_answered = False
            self._sent.append(batch)
            yield batch.request
        sent = time.monotonic()
        while not self._ended:
            if not self._room.acquire(timeout=_LOOK_SECONDS):
                continue
            with self._taking:
                if self._ended:
                    return
                try:
                    taken = self._source.take(_LOOK_SECONDS)
                except queue.Empty:
                    if time.monotonic() < sent + _IDLE_SECONDS:
                        self._room.release()
                        continue
                    # An empty request says that there is more to come.
                    taken = _Batch(0, request=pb.ImportRecordsRequest())
                else:
                    if taken is None:
                        return
                    self._unconfirmed.append(taken)
                self._sent.append(taken)
            sent = time.monotonic()
            yield taken.request
