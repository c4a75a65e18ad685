"""Which server a command calls, and how it proves who it is: what options, environment and contexts
mean together.

Each option comes from the command line, else from its environment variable, else from the context,
else it has its default. So that a token goes only to the server for which it is meant, there are
two exceptions. Where the command line or the environment names the server, no context is used. And
with `--context` on the command line, the environment variables of these options are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from wfe_persistence_cli.contexts import FILE_VARIABLE, KEYS, PATHS, ContextError, Contexts

if TYPE_CHECKING:
    import grpc

    from wfe_persistence_client import PersistenceProvider, Tls

ENV_PREFIX: Final = "WFE_PERSISTENCE_"
TOKEN_VARIABLE: Final = ENV_PREFIX + "BEARER_TOKEN"
"""The token itself. There is no such option, because others can read command lines."""
OTHER_VARIABLES: Final = frozenset({FILE_VARIABLE, TOKEN_VARIABLE})
"""Environment variables without an option."""
DEFAULT_LISTEN: Final = "127.0.0.1:50052"
"""Where a server listens of which nothing else is said."""
DEFAULT_NAMESPACE: Final = "default"

NAMES: Final = (
    "context", "target", "namespace", "namespace_set", "bearer_token_file", "tls", "tls_ca",
    "tls_client_cert", "tls_client_key", "tls_server_name", "timeout", "listen", "tls_cert",
)  # fmt: skip
"""The options that say which server is called, and how, as they are called here."""
_ENVIRONMENT: Final = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server that a command calls, how, and where we know it from."""

    address: str
    timeout: float
    """Maximum time to wait for a response, in seconds."""
    namespace: str = DEFAULT_NAMESPACE
    namespace_set: str | None = None
    """Then the namespace is only that of calls that concern none."""
    tls: bool = False
    tls_ca: Path | None = None
    tls_client_cert: Path | None = None
    tls_client_key: Path | None = None
    tls_server_name: str | None = None
    token: str | None = None
    token_file: Path | None = None
    origin: str = ""
    """What named the server, for people."""
    namespace_origin: str = ""
    token_origin: str = ""

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None

    @property
    def store(self) -> str:
        """What the command works on, for people."""
        if self.namespace_set:
            return f"namespace set {self.namespace_set!r}"
        return f"namespace {self.namespace!r}"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with every call: the namespace and the token."""
        found = [("wfe-namespace", self.namespace)]
        token = self.token
        if self.token_file is not None:
            token = self.token_file.read_text("utf-8").strip()
        if token:
            found.append(("authorization", f"Bearer {token}"))
        return tuple(found)

    def channel(self) -> grpc.Channel:
        """A channel to it, which is connected when it is used. Raises OSError, ValueError."""
        import grpc

        tls = self._tls()
        if tls is None:
            # A proxy would be somewhere else, and the token is not for it.
            has_token = self.token or self.token_file is not None
            options = [("grpc.enable_http_proxy", 0)] if has_token else None
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, tls.credentials(), tls.options())

    def connect(self, *, patient: bool = False) -> PersistenceProvider:
        """A provider for it. It gives up at the first failure to connect, unless it is `patient`.
        Raises OSError, ValueError."""
        from wfe_persistence_client import RetryPolicy, connect

        return connect(
            self.address,
            namespace=None if self.namespace_set else self.namespace,
            namespace_set=self.namespace_set,
            timeout=self.timeout,
            token=self.token,
            token_file=self.token_file,
            tls=self._tls(),
            retry=RetryPolicy() if patient else RetryPolicy(max_attempts=1),
        )

    def _tls(self) -> Tls | None:
        from wfe_persistence_client import Tls

        if not self.uses_tls:
            return None
        return Tls(
            ca=self.tls_ca,
            cert=self.tls_client_cert,
            key=self.tls_client_key,
            server_name=self.tls_server_name,
        )


def resolve_begun(context: click.Context) -> Target:
    """The server that a command line names which is still being typed. Raises UsageError."""
    values = {name: context.params.get(name) for name in NAMES}
    return resolve(context, values | {"listen": values["listen"] or DEFAULT_LISTEN})


def resolve(context: click.Context, values: dict[str, Any]) -> Target:
    """The server that the values of the options name, each with regard to where it is from. Raises
    UsageError."""
    source = {name: context.get_parameter_source(name) for name in NAMES}

    def is_flag(name: str) -> bool:
        return source[name] is ParameterSource.COMMANDLINE

    by_flag = is_flag("target") or is_flag("listen")
    if by_flag and is_flag("context"):
        raise click.UsageError("--context and --target name two servers: give one of them")
    by_environment = source["target"] in _ENVIRONMENT or source["listen"] in _ENVIRONMENT
    chosen: Mapping[str, str | bool] = {}
    chosen_name = ""
    if not by_flag and (is_flag("context") or not by_environment):
        chosen_name, chosen = _chosen(values["context"])
    # Where --context is on the command line, only what else is there counts beside it.
    counts = (
        is_flag
        if is_flag("context")
        else lambda name: source[name] is not None and (source[name] is not ParameterSource.DEFAULT)
    )
    origins, ranks = {}, {}
    for name in ("target", "namespace", "namespace_set", "bearer_token_file"):
        key = name.replace("_", "-")
        if counts(name) and values[name] is not None:
            ranks[name] = 3 if is_flag(name) else 2
            origins[name] = f"--{key}" if is_flag(name) else ENV_PREFIX + name.upper()
        elif key in chosen:
            ranks[name], origins[name] = 1, f"the context {chosen_name!r}"
        else:
            ranks[name], origins[name] = 0, ""
    for key in KEYS:
        name = key.replace("-", "_")
        if not (counts(name) and values[name] is not None):
            value = chosen.get(key)
            values[name] = Path(str(value)) if key in PATHS and value is not None else value
    if ranks["namespace"] == ranks["namespace_set"] > 0:
        raise click.UsageError(
            f"{origins['namespace']} and {origins['namespace_set']}: give a namespace or a "
            "namespace set, not both"
        )
    values["namespace" if ranks["namespace_set"] > ranks["namespace"] else "namespace_set"] = None
    return _target(values, origins, uses_environment=not is_flag("context"))


def _chosen(named: str | None) -> tuple[str, Mapping[str, str | bool]]:
    """The context that is named, or else the current one, or else nothing."""
    try:
        contexts = Contexts.read()
        name = named or contexts.current
        return (name, contexts.get(name)) if name else ("", {})
    except ContextError as exc:
        raise click.UsageError(str(exc)) from None


def _target(values: dict[str, Any], origins: dict[str, str], *, uses_environment: bool) -> Target:
    if bool(values["tls_client_cert"]) != bool(values["tls_client_key"]):
        raise click.UsageError("--tls-client-cert and --tls-client-key: set both or neither")
    address, origin = values["target"], origins["target"]
    tls_ca, server_name, tls = values["tls_ca"], values["tls_server_name"], values["tls"]
    if address is None:
        listen, tls_cert = values["listen"], values["tls_cert"]
        address, origin = _here(listen), "--listen: the server on this machine"
        if tls_cert and not tls_ca and tls is not False and not listen.startswith("unix:"):
            # Its own certificate is as good as the authority that signed it, and the host is
            # not what it is made out to.
            tls_ca = tls_cert
            server_name = server_name or _name_in(tls_cert)
    if tls is False:
        tls_ca = None
    if not (tls or tls_ca) and (values["tls_client_cert"] or server_name):
        raise click.UsageError("--tls-ca is missing: it turns TLS on")
    token_file, token_origin = values["bearer_token_file"], origins["bearer_token_file"]
    token = os.environ.get(TOKEN_VARIABLE) if uses_environment else None
    if token and token_file:
        # What is named on the command line goes before the environment, and that before a context.
        if token_origin.startswith("the context"):
            token_file = None
        else:
            token = None
    if token:
        token_origin = TOKEN_VARIABLE
    if (token or token_file) and not (tls or tls_ca or is_local(address)):
        raise click.UsageError(
            f"a token (from {token_origin}) is not sent in plain text over a network; connect with "
            "--tls or --tls-ca"
        )
    return Target(
        address=address,
        timeout=values["timeout"],
        namespace=values["namespace"] or DEFAULT_NAMESPACE,
        namespace_set=values["namespace_set"] or None,
        tls=bool(tls),
        tls_ca=tls_ca,
        tls_client_cert=values["tls_client_cert"],
        tls_client_key=values["tls_client_key"],
        tls_server_name=server_name,
        token=token or None,
        token_file=token_file,
        origin=origin,
        namespace_origin=(
            origins["namespace_set" if values["namespace_set"] else "namespace"] or "the default"
        ),
        token_origin=f"the file {token_file}, {token_origin}" if token_file else token_origin,
    )


def is_local(address: str) -> bool:
    """Whether only this machine can be meant: a loopback address or a Unix socket."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _here(listen: str) -> str:
    """The address of a server on this machine: that of one that listens on all is the loopback."""
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, listen)  # noqa: S104


def _name_in(certificate: Path) -> str | None:
    """The first name that a certificate is made out to."""
    try:
        from cryptography import x509
    except ImportError:
        raise click.UsageError(
            "--tls-cert: needs the package cryptography, to read the certificate's name; give "
            "--tls-server-name"
        ) from None

    try:
        first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (OSError, ValueError) as exc:
        raise click.UsageError(f"--tls-cert: {certificate}: {exc}") from None
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return next((str(name.value) for name in names), None)
