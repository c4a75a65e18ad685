"""What the commands that call a server in a namespace have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence.cli.options import config_option, refuse_unknown_variables
from wfe_persistence.cli.target import Target, file_option, target_options
from wfe_persistence.settings import ENV_PREFIX
from wfe_persistence.store.schema import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    import grpc


class Caller:
    """Calls a server in a namespace."""

    def __init__(
        self, target: Target, namespace: str, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self._target = target
        self.namespace = namespace
        self.timeout = target.timeout
        """Maximum time to wait for a response, in seconds."""
        self.metadata = metadata
        """What is sent with every call: the namespace and the token."""

    def channel(self) -> grpc.Channel:
        """A channel to the server, which is connected when it is used."""
        return self._target.channel()

    def __call__(self, method: str, request: Any, *, at_least: float = 0) -> Any:
        """The response of a method of StoreService; `at_least`: how many seconds it may take,
        whatever the timeout."""
        from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub

        with self.channel() as channel:
            call = getattr(StoreServiceStub(channel), method)
            timeout = max(self.timeout, at_least)
            return call(request, timeout=timeout, metadata=self.metadata)


def calls_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server and a namespace; it takes them as `call`."""

    @wraps(command)
    def with_caller(
        target: Target, namespace: str, bearer_token_file: Path | None, **arguments: Any
    ) -> None:
        refuse_unknown_variables()
        with _errors_shown():
            command(_caller(target, namespace, bearer_token_file), **arguments)

    token_option: Callable[[Callable[..., None]], Callable[..., None]] = file_option(
        "--bearer-token-file",
        "File with the bearer token to send; only with TLS or to a server on this machine.",
    )
    in_namespace = click.option(
        "--namespace",
        default=DEFAULT_NAMESPACE,
        envvar=ENV_PREFIX + "NAMESPACE",
        show_envvar=True,
        show_default=True,
        help="Namespace to use.",
    )
    return config_option(in_namespace(token_option(target_options(with_caller))))


def _caller(target: Target, namespace: str, token_file: Path | None) -> Caller:
    metadata: tuple[tuple[str, str], ...] = (("wfe-namespace", namespace),)
    if token_file:
        if not target.may_have_token():
            raise click.UsageError(
                "--bearer-token-file: a token is not sent in plain text over a network; "
                "connect with --tls-ca"
            )
        token = token_file.read_text("utf-8").strip()
        metadata += (("authorization", f"Bearer {token}"),)
    return Caller(target, namespace, metadata)


@contextmanager
def _errors_shown() -> Iterator[None]:
    import grpc

    try:
        yield
    except grpc.RpcError as exc:
        click.echo(shown(exc), err=True)
        sys.exit(1)


def shown(error: Any) -> str:
    """A call's error on one line."""
    return f"{error.code().name}: {error.details()}"
