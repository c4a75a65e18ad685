"""How a command calls a server: with the provider, or with the stubs where there is no method."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wfe_persistence_cli.options import target_options
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import FAILURE, INTERRUPTED, USAGE
from wfe_persistence_cli.target import Target
from wfe_persistence_cli.text import harmless

if TYPE_CHECKING:
    import grpc

    from wfe_persistence_client import PersistenceProvider

_T = TypeVar("_T")


class Caller:
    """Calls a server in a namespace."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.namespace = target.namespace
        self.timeout = target.timeout
        """Maximum time to wait for a response, in seconds."""
        self.metadata = target.metadata
        """What is sent with every call of a stub: the namespace and the token."""

    @property
    def place(self) -> str:
        """Where calls go, for people."""
        return f"the {self.target.store} at {self.target.address}"

    def of_one_namespace(self) -> None:
        """Raise UsageError if it is not a namespace that is called, but a namespace set."""
        if self.target.namespace_set:
            raise click.UsageError(
                f"this is done in one namespace, not in the {self.target.store} as a whole: name a "
                "member, as in --namespace NAME_0"
            )

    def channel(self) -> grpc.Channel:
        """A channel to the server, which is connected when it is used."""
        return self.target.channel()

    def __call__(self, method: str, request: Any, *, at_least: float = 0) -> Any:
        """The response of a method of StoreService; `at_least`: how many seconds it may take,
        whatever the timeout."""
        from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub

        with self.channel() as channel:
            call = getattr(StoreServiceStub(channel), method)
            timeout = max(self.timeout, at_least)
            return call(request, timeout=timeout, metadata=self.metadata)

    def run(
        self, body: Callable[[PersistenceProvider], Awaitable[_T]], *, patient: bool = False
    ) -> _T:
        """What `body` returns, which gets a provider. Ctrl-C cancels it, and raises
        KeyboardInterrupt.

        `patient`: calls wait for a server that is away; else the first failure to connect ends it.
        """

        async def main() -> _T:
            try:
                provider = self.target.connect(patient=patient)
            except ValueError as exc:
                raise click.UsageError(str(exc)) from None
            async with provider:
                return await body(provider)

        return asyncio.run(main())


def calls_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server and a namespace; it takes them as `call`."""

    @wraps(command)
    def with_caller(target: Target, **arguments: Any) -> None:
        with errors_shown(target):
            command(call=Caller(target), **arguments)

    return target_options(with_caller)


@contextmanager
def errors_shown(target: Target) -> Iterator[None]:
    """Say what is wrong with a call that fails, and exit with the status for it."""
    import grpc

    from wfe_persistence_cli import failures
    from wfe_persistence_client import PersistenceError
    from wfe_persistence_client.misfit import FieldTypeError, FieldValueError

    try:
        yield
        sys.stdout.flush()
    except (grpc.RpcError, PersistenceError) as exc:
        error = exc if isinstance(exc, PersistenceError) else failures.as_error(exc)
        tell(*failures.lines_of(error, target))
        sys.exit(failures.status_of(error))
    except BrokenPipeError:
        _leave_pipe()
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(INTERRUPTED)
    except OSError as exc:
        tell(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc))
        sys.exit(FAILURE)
    except (FieldTypeError, FieldValueError) as exc:
        tell(str(exc))  # what can't be sent at all
        sys.exit(USAGE)


def _leave_pipe() -> None:
    """Whoever read has enough, as `head` does: that is no failure. Nothing more is written, not
    even at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def confirm(question: str, *, yes: bool) -> None:
    """Have a person say that something may be done, or exit.

    `yes`: it was said on the command line. Where nobody can be asked, because stdin is no terminal,
    it has to be.
    """
    if yes:
        return
    question = harmless(question)  # names in it are anybody's
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can be asked here: say --yes")
    try:
        said = click.confirm(question, err=True)
    except click.Abort:
        tell("", "interrupted: nothing was changed")
        sys.exit(INTERRUPTED)
    if not said:
        tell("nothing was changed")
        sys.exit(FAILURE)
