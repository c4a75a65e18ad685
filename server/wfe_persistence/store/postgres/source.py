"""Where the connection string comes from: a setting or a file, with a password of its own or not.

Files and commands are read again for each connection, so that a password can be rotated under a
running server. Every password that is read is hidden from logs and messages.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, quote_plus

import psycopg
from psycopg import conninfo

from wfe_persistence.redaction import hide, redacted

# Defaults for the connection string; what it says itself takes precedence. A peer that vanished
# silently is noticed after tcp_user_timeout instead of minutes.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "application_name": "wfe-persistence",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# What the server relies on, whatever the connection string says: it encodes all text itself.
_FIXED: Final[Mapping[str, Any]] = {"client_encoding": "utf8"}

# What may be shown of a connection string.
_PUBLIC: Final = (
    "service", "host", "hostaddr", "port", "dbname", "user", "sslmode", "target_session_attrs",
)  # fmt: skip

_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret")

# As libpq divides a URL; what follows the path are options.
_URL: Final = re.compile(r"postgres(?:ql)?://(?:[^@/]*@)?[^/?]*(?P<path>[^?]*)")

_MAX_FILE_BYTES: Final = 65_536
_COMMAND_SECONDS: Final = 10.0


Connect = Callable[..., Awaitable[psycopg.AsyncConnection[Any]]]


class Connector(Protocol):
    """What administration connects with: a source, or a database, which makes room if need be."""

    async def connect(self, connect: Connect, **options: Any) -> psycopg.AsyncConnection[Any]:
        """Connect with `connect` of a class of connections. Raises psycopg.Error."""


class SourceError(psycopg.OperationalError):
    """A file or command does not give what is needed to connect; the message has no secrets."""


class SecretFile:
    """A file with one value. A final line break is not part of it.

    What is not a regular file, a pipe for example, is read only once.
    """

    def __init__(self, setting: str, path: Path) -> None:
        self.name = f"{setting}: {path}"
        """The setting and the path, for messages."""
        self._path = path
        self._once: str | None = None

    def read(self) -> str:
        """The value. Raises SourceError."""
        if self._once is not None:
            return self._once
        try:
            with self._path.open("rb") as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise SourceError(f"{self.name}: {exc.strerror}") from None
        value = _value(self.name, content)
        if not regular:
            self._once = value
        return value


class SecretCommand:
    """A command whose output is one value. It is run without a shell."""

    def __init__(self, setting: str, command: str) -> None:
        """Raises ValueError for a command that can't be split into words."""
        self._setting = setting
        try:
            self._words = shlex.split(command)
        except ValueError as exc:
            raise ValueError(f"{setting}: {exc}") from None
        if not self._words:
            raise ValueError(f"{setting}: is empty")

    async def read(self) -> str:
        """Run the command; returns its output. Raises SourceError."""
        name = f"{self._setting}: {self._words[0]}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as exc:
            raise SourceError(f"{name}: {exc.strerror}") from None
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                output, errors = await process.communicate()
        except TimeoutError:
            raise SourceError(f"{name}: has not ended within {_COMMAND_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = errors.decode(errors="replace").strip().splitlines()
            message = f"{name}: exit status {process.returncode}"
            raise SourceError(f"{message}: {redacted(said[-1])}" if said else message)
        return _value(name, output)


@dataclass(frozen=True, slots=True)
class ConnectionSource:
    """How to connect: a connection string, or the file that has it, and optionally where its
    password is. Raises ValueError for what can never work."""

    url: str = field(repr=False)
    url_file: SecretFile | None = None
    password_file: SecretFile | None = None
    password_command: SecretCommand | None = None
    setting: str = "db-url"
    """Where the connection string is from, for messages."""

    def check(self) -> None:
        """Raise ValueError for an invalid connection string, or a file that can't be used now."""
        try:
            self._conninfo(self._url(), self._password_of_file())
        except SourceError as exc:
            raise ValueError(str(exc)) from None

    def description(self) -> str:
        """Which database it is, without secrets. Raises ValueError as `check` does."""
        self.check()
        given = conninfo.conninfo_to_dict(self._url())
        public = {key: given[key] for key in _PUBLIC if key in given}
        return conninfo.make_conninfo("", **public) or "as libpq's environment variables say"

    def database_name(self) -> str:
        """The name of the database; empty: the connection string does not say."""
        try:
            self.check()
            return str(conninfo.conninfo_to_dict(self._url()).get("dbname") or "")
        except (SourceError, ValueError):
            return ""

    async def conninfo(self) -> str:
        """The connection string for the next connection. Raises SourceError."""
        if self.url_file is None and self.password_file is None:
            url, password = self.url, None
        else:
            url = await asyncio.to_thread(self._url)
            password = await asyncio.to_thread(self._password_of_file)
        if self.password_command is not None:
            password = await self.password_command.read()
        return self._conninfo(url, password)

    async def connect(self, connect: Connect, **options: Any) -> psycopg.AsyncConnection[Any]:
        """Connect with `connect` of a class of connections. Raises psycopg.Error."""
        return await connect(await self.conninfo(), **options)

    def _url(self) -> str:
        return self.url if self.url_file is None else self.url_file.read()

    def _password_of_file(self) -> str | None:
        return None if self.password_file is None else self.password_file.read()

    def _conninfo(self, url: str, password: str | None) -> str:
        """A connection string with our defaults for what it leaves open. Raises SourceError."""
        name = self.setting if self.url_file is None else self.url_file.name
        # Messages of the driver would repeat parts of the string, and with them a password: none
        # of them is passed on, not even as a cause.
        try:
            given = conninfo.conninfo_to_dict(url)
            if password is not None:
                given["password"] = password
            _hide_secrets(given)
            if problem := _problem(url, given):
                raise SourceError(f"{name}: {problem}")
            return conninfo.make_conninfo("", **{**_DEFAULTS, **given, **_FIXED})
        except (psycopg.ProgrammingError, ValueError):
            raise SourceError(
                f"{name}: is not a valid PostgreSQL connection string or URL"
            ) from None


def _value(name: str, content: bytes) -> str:
    if len(content) > _MAX_FILE_BYTES:
        raise SourceError(f"{name}: more than {_MAX_FILE_BYTES} bytes")
    try:
        value = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SourceError(f"{name}: is not UTF-8") from None
    if not value:
        raise SourceError(f"{name}: is empty")
    if "\0" in value:
        raise SourceError(f"{name}: contains a null byte")
    return value


def _hide_secrets(given: Mapping[str, Any]) -> None:
    public = {str(given.get(key)) for key in ("user", "dbname", "host", "port")}
    for secret in (*(given.get(key) for key in _SECRETS), os.environ.get("PGPASSWORD")):
        if secret and str(secret) not in public:
            for form in (str(secret), quote(str(secret), safe=""), quote_plus(str(secret))):
                hide(form)


def _problem(url: str, given: Mapping[str, Any]) -> str:
    """What is wrong with a connection string that libpq accepts; empty: nothing.

    In a URL with an unescaped `@` or `/` in its password, libpq takes a part of the password for
    the host, the port or the database, and would show it in its messages.
    """
    host, port, dbname = (str(given.get(key, "")) for key in ("host", "port", "dbname"))
    parts = _URL.match(url)
    # (A host that begins with @ is an abstract Unix socket.)
    if "@" in host[1:] or "://" in dbname or (parts and "@" in parts["path"]):
        return "is no valid URL: write @ as %40 and / as %2F in a user, password or database"
    if any(number and not _is_port(number) for number in port.split(",")):
        return "the port is not a number from 1 to 65535 (in a password, write / as %2F)"
    timeout = str(given.get("connect_timeout", "")).strip()
    if timeout and not timeout.removeprefix("-").isdecimal():
        return "connect_timeout is not a whole number of seconds"
    return ""


def _is_port(number: str) -> bool:
    return number.isascii() and number.isdecimal() and 1 <= int(number) <= 65_535
