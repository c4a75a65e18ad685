"""Every setting of the server, declared once: name, type, default, help, bounds.

The command-line options, the environment variables, the keys of the TOML file, the validation and
docs/configuration.md all follow from the groups in `GROUPS`. To add a setting, add a field to one
of them, and `./run gen`. Loads nothing but the standard library and `store.schema`, so that reading
settings is fast and needs no gRPC.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from wfe_persistence.settings import databases
from wfe_persistence.settings.database import Database, Pool, default_data_dir
from wfe_persistence.settings.databases import NamedDatabase
from wfe_persistence.settings.network import (
    DEFAULT_LISTEN,
    Access,
    Connections,
    Console,
    Listening,
    Tls,
)
from wfe_persistence.settings.operation import (
    Logs,
    Processes,
    Retention,
    Shutdown,
    Sweep,
    Traces,
    Transfers,
)
from wfe_persistence.settings.service import Calls, Rpcs
from wfe_persistence.settings.setting import ENV_PREFIX, About, Setting, declared
from wfe_persistence.store.schema import HOME, Schema

__all__ = [
    "DEFAULT_LISTEN",
    "ENV_PREFIX",
    "GROUPS",
    "SETTINGS",
    "About",
    "NamedDatabase",
    "Setting",
    "Settings",
    "default_data_dir",
    "listens_locally",
]

# As long as it takes Kubernetes to tell its nodes that an endpoint is gone. With the 5 s of
# --drain-seconds and what ending calls takes, it is less than the 10 s after which Docker kills.
_DRAIN_DELAY: Final = 3.0

MAX_WORKERS: Final = 64
"""The most processes that serve."""

_MODE: Final = re.compile("0?[0-7]{3}")

GROUPS: Final[dict[str, type[Any]]] = {
    "Database": Database,
    "Database connections": Pool,
    "Listening": Listening,
    "Console": Console,
    "TLS": Tls,
    "Authentication and access": Access,
    "RPCs": Rpcs,
    "Limits of calls": Calls,
    "Client connections": Connections,
    "Processes": Processes,
    "Shutdown": Shutdown,
    "Sweep": Sweep,
    "Retention": Retention,
    "Export and import": Transfers,
    "Logs": Logs,
    "Traces": Traces,
}
"""All groups of settings by their headings, in the order in which they are shown."""

SETTINGS: Final = declared(GROUPS)
"""All settings by name, in the order of their groups and of their declaration there."""


@dataclass(frozen=True, kw_only=True)
class Settings(
    Database,
    Pool,
    Listening,
    Console,
    Tls,
    Access,
    Rpcs,
    Calls,
    Connections,
    Processes,
    Shutdown,
    Sweep,
    Retention,
    Transfers,
    Logs,
    Traces,
):
    """The settings of the server. Raises ValueError, naming the setting, for an invalid value."""

    def __post_init__(self) -> None:
        for setting in SETTINGS.values():
            setting.validate(getattr(self, setting.name))
        Schema(self.schema, self.table_prefix)
        databases.check(self.databases)
        if not _MODE.fullmatch(self.socket_mode):
            raise ValueError("socket-mode: must be octal permissions, for example 0660")
        if self.listen.startswith("unix-abstract:"):
            raise ValueError(
                "listen: an abstract socket has no permissions, so every user could connect; use "
                "unix:PATH"
            )
        if self.workers != "auto" and not (
            self.workers.isdecimal() and 1 <= int(self.workers) <= MAX_WORKERS
        ):
            raise ValueError(f"workers: must be a number from 1 to {MAX_WORKERS}, or auto")
        if self.worker_count > 1 and not sys.platform.startswith("linux"):
            raise ValueError("workers: more than one need Linux")
        if self.db_url and self.db_url_file:
            raise ValueError("db-url-file: can't be set together with db-url")
        for name, given in (
            ("db-read-url", self.db_read_url),
            ("db-read-url-file", self.db_read_url_file),
        ):
            if given and (self.home.read_urls or self.home.read_url_files):
                raise ValueError(
                    f"{name}: can't be set together with the read-urls or read-url-files of "
                    "databases.home"
                )
        if self.db_password_file and self.db_password_command:
            raise ValueError("db-password-command: can't be set together with db-password-file")
        if not self.listen.startswith("unix:"):
            host, _, port = self.listen.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"listen: {self.listen!r} is neither HOST:PORT nor unix:PATH")
        if self.admin_listen:
            host, _, port = self.admin_listen.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"admin-listen: {self.admin_listen!r} is not HOST:PORT")

    def _require_console(self) -> None:
        """Raise ValueError if there can be no console with these settings."""
        if self.console and not self.admin_listen:
            raise ValueError("console: needs admin-listen, where it is served")
        if self.console_write and not self.console:
            raise ValueError("console-write: needs console")
        if self.console and self.tls_client_ca:
            raise ValueError(
                "console: is not possible with tls-client-ca: a browser's certificate proves who "
                "uses it to the admin port, but the console can't call the server with it. Start "
                "one more server on the same database, for the console alone, to which people log "
                "in with tokens: docs/console.md, With client certificates"
            )

    def require_protection(self) -> None:
        """Raise ValueError if strangers could call a server with these settings without TLS and
        authentication, unless that is accepted; or if the settings of either, or of the console,
        do not go together.

        Strangers are callers from other machines, and on a Unix socket other users than its owner
        and group.
        """
        self._require_console()
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls-cert and tls-key: set both or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls-client-ca: needs tls-cert and tls-key")
        jwt = (self.jwt_issuer, self.jwt_audience, self.jwt_jwks)
        if any(jwt) and not all(jwt):
            raise ValueError("jwt-issuer, jwt-audience and jwt-jwks: set all or none")
        if self.authentication and not self.policy_file:
            raise ValueError(
                f"policy-file: is not set; without a policy, who has a {self.authentication[0]} "
                "may do nothing"
            )
        if self.insecure:
            return
        missing = []
        if self.listen.startswith("unix:"):
            who = "every user of this machine"
            open_to_strangers = bool(self.socket_permissions & 0o007)
        else:
            who = "other machines"
            open_to_strangers = not listens_locally(self.listen)
            if not self.tls_cert:
                missing.append("TLS (tls-cert, tls-key)")
        if not self.authentication:
            missing.append("authentication (token-file, jwt-issuer or tls-client-ca)")
        if open_to_strangers and missing:
            raise ValueError(
                f"listen: {who} can reach {self.listen}, so it needs {' and '.join(missing)}; "
                "to serve without, set insecure"
            )
        if self.admin_listen and not listens_locally(self.admin_listen):
            missing = [] if self.tls_cert else ["TLS (tls-cert, tls-key)"]
            if not self.authentication:
                missing.append("authentication (token-file, jwt-issuer or tls-client-ca)")
            if missing:
                raise ValueError(
                    f"admin-listen: other machines can reach {self.admin_listen}, so it needs "
                    f"{' and '.join(missing)}; to serve without, set insecure"
                )

    @property
    def authentication(self) -> tuple[str, ...]:
        """How callers can prove who they are; empty: they need not."""
        ways = (
            ("token", self.token_file),
            ("JWT", self.jwt_issuer),
            ("client certificate", self.tls_client_ca),
        )
        return tuple(way for way, setting in ways if setting)

    @property
    def protection(self) -> str:
        """TLS and authentication of the listen address, in a few words."""
        transport = "TLS" if self.tls_cert else "plaintext"
        return f"{transport}, {' or '.join(self.authentication) or 'no authentication'}"

    @property
    def socket_permissions(self) -> int:
        """`socket_mode` as a number."""
        return int(self.socket_mode, 8)

    @property
    def seconds_before_drain(self) -> float:
        """`drain_delay`, or its default."""
        if self.drain_delay is None:
            return 0.0 if listens_locally(self.listen) else _DRAIN_DELAY
        return self.drain_delay

    @property
    def worker_count(self) -> int:
        """How many processes serve."""
        if self.workers != "auto":
            return int(self.workers)
        if sys.platform.startswith("linux"):
            return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        return 1

    @property
    def uses_embedded_database(self) -> bool:
        """Whether no database was named."""
        return not (self.db_url or self.db_url_file)

    @property
    def home(self) -> NamedDatabase:
        """What is said of the home database beside how to connect to it."""
        for each in self.databases:
            if each.name == HOME:
                return each
        return NamedDatabase(name=HOME)

    @property
    def other_databases(self) -> tuple[NamedDatabase, ...]:
        """The databases besides the home."""
        return tuple(each for each in self.databases if each.name != HOME)

    @property
    def most_database_connections(self) -> int:
        """How many connections the pools of all databases have at most, and what listens."""
        most = self.pool_size * (1 + len(self.db_read_url) + len(self.db_read_url_file))
        for each in (self.home, *self.other_databases):
            replicas = len(each.read_urls) + len(each.read_url_files)
            most += (each.pool_size or self.pool_size) * (replicas + (each.name != HOME))
        return most + self.notify

    @property
    def reflection_enabled(self) -> bool:
        """Whether reflection is enabled, by the setting or by its default."""
        return listens_locally(self.listen) if self.reflection is None else self.reflection

    @property
    def create_namespace_allowed(self) -> bool:
        """Whether CreateNamespace is enabled, by the setting or by its default."""
        if self.allow_create_namespace is None:
            return listens_locally(self.listen)
        return self.allow_create_namespace


def listens_locally(listen: str) -> bool:
    """Whether only this machine can reach a listen address: a loopback address or a Unix socket."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
