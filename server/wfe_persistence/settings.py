"""Every setting of the server, declared once: name, type, default, help, bounds.

The command-line options, the environment variables, the keys of the TOML file and the validation
all follow from `Settings`. To add a setting, add a field to it. Loads nothing but the standard
library and `store.schema`, so that reading settings is fast and needs no gRPC.
"""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, get_args, get_type_hints

from wfe_persistence.store.schema import DEFAULT_SCHEMA, Schema

ENV_PREFIX: Final = "WFE_PERSISTENCE_"
DEFAULT_LISTEN: Final = "127.0.0.1:50052"

# As long as it takes Kubernetes to tell its nodes that an endpoint is gone. With the 5 s of
# --drain-seconds and what ending calls takes, it is less than the 10 s after which Docker kills.
_DRAIN_DELAY: Final = 3.0

_MODE: Final = re.compile("0?[0-7]{3}")


def default_data_dir() -> Path:
    """The data directory of the embedded PostgreSQL unless one is set."""
    if os.geteuid() == 0:
        return Path("/var/lib/wfe-persistence")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "wfe-persistence"


@dataclass(frozen=True, slots=True)
class About:
    """What the declaration of a setting says beside its name, type and default.

    `minimum` and `maximum` are inclusive, `above` is exclusive. `default_help` describes a default
    that depends on the environment or that is empty. The value of a `secret` is never shown. A path
    is that of a file unless it is a `directory`.
    """

    help: str
    metavar: str | None = None
    default_help: str | None = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    above: float | None = None
    secret: bool = False
    directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of the server. Raises ValueError, naming the setting, for an invalid value."""

    db_url: Annotated[
        str,
        About(
            "PostgreSQL server (version 14 or newer), as a libpq connection string or URL.",
            metavar="URL",
            default_help="embedded PostgreSQL",
            secret=True,
        ),
    ] = field(default="", repr=False)
    db_url_file: Annotated[
        Path | None,
        About(
            "File that contains the connection string, instead of --db-url, so that the list of "
            "processes does not show its password. Read again for each connection.",
            metavar="FILE",
            default_help="none",
        ),
    ] = None
    db_password_file: Annotated[
        Path | None,
        About(
            "File that contains the database password, which takes precedence over one in the "
            "connection string. Read again for each connection, so that it can be rotated.",
            metavar="FILE",
            default_help="none",
        ),
    ] = None
    db_password_command: Annotated[
        str,
        About(
            "Command that prints the database password (within 10 s), for example a short-lived "
            "token. Run without a shell, again for each connection.",
            metavar="COMMAND",
            default_help="none",
        ),
    ] = ""
    data_dir: Annotated[
        Path,
        About(
            "Data directory of the embedded PostgreSQL.",
            metavar="DIRECTORY",
            default_help="/var/lib/wfe-persistence as root, otherwise "
            "wfe-persistence in $XDG_DATA_HOME or ~/.local/share",
            directory=True,
        ),
    ] = field(default_factory=default_data_dir)
    schema: Annotated[str, About("PostgreSQL schema of the tables.")] = DEFAULT_SCHEMA
    table_prefix: Annotated[str, About("Prefix of all table names.", default_help="none")] = ""
    listen: Annotated[
        str,
        About("Listen address: HOST:PORT (port 0: any free port) or unix:PATH.", metavar="ADDRESS"),
    ] = DEFAULT_LISTEN
    socket_mode: Annotated[
        str,
        About(
            "Permissions of a Unix socket, in octal: who may connect. 0660 lets the group, 0666 "
            "everybody.",
            metavar="MODE",
        ),
    ] = "0600"
    tls_cert: Annotated[
        Path | None,
        About(
            "Certificate of the server and its chain (PEM): serve TLS. Read again when it changes.",
            metavar="FILE",
            default_help="no TLS",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        About("Private key of the certificate (PEM, unencrypted).", metavar="FILE"),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        About(
            "Certificate authorities (PEM) that sign clients' certificates: require one of every "
            "client (mutual TLS).",
            metavar="FILE",
            default_help="none",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        About(
            "File of hashed bearer tokens, which `token create` makes: callers must authenticate, "
            "and can with one of them. Read again when it changes.",
            metavar="FILE",
            default_help="no tokens",
        ),
    ] = None
    jwt_issuer: Annotated[
        str,
        About(
            "Issuer (`iss`) of JSON Web Tokens: callers must authenticate, and can with one of "
            "them as bearer token. Needs jwt-audience and jwt-jwks.",
            metavar="URL",
            default_help="no JWTs",
        ),
    ] = ""
    jwt_audience: Annotated[
        str, About("Audience (`aud`) that a JWT must be meant for.", default_help="none")
    ] = ""
    jwt_jwks: Annotated[
        str,
        About(
            "Keys of the JWTs' issuer (JWKS): a file, an https URL, or an http URL of a loopback "
            "address. Fetched again when a key is unknown.",
            metavar="FILE|URL",
            default_help="none",
        ),
    ] = ""
    jwt_jwks_ca: Annotated[
        Path | None,
        About(
            "Certificate authorities (PEM) to trust for the URL of the keys.",
            metavar="FILE",
            default_help="those of the system",
        ),
    ] = None
    jwt_jwks_token_file: Annotated[
        Path | None,
        About(
            "File with the bearer token to fetch the keys with. Read again each time.",
            metavar="FILE",
            default_help="no token",
        ),
    ] = None
    jwt_algorithms: Annotated[
        str,
        About("Algorithms that JWTs may be signed with: asymmetric ones, separated by commas."),
    ] = "RS256,ES256"
    jwt_principal_claim: Annotated[
        str, About("Claim of a JWT that names its principal, as `jwt:NAME`.")
    ] = "sub"
    policy_file: Annotated[
        Path | None,
        About(
            "TOML file that says which principals have which role in which namespaces, and how "
            "much principals and namespaces may use; required with authentication. Read again when "
            "it changes. See `policy check`.",
            metavar="FILE",
            default_help="none",
        ),
    ] = None
    insecure: Annotated[
        bool,
        About(
            "Accept a listen address that strangers can reach, without TLS or without "
            "authentication."
        ),
    ] = False
    pool_size: Annotated[int, About("Maximum number of database connections.", minimum=1)] = 10
    pool_timeout: Annotated[
        float, About("Maximum time a call waits for a connection (seconds).", above=0)
    ] = 5.0
    max_waiting: Annotated[
        int, About("Maximum calls per namespace waiting for a connection.", minimum=1)
    ] = 2000
    prepare: Annotated[
        bool,
        About(
            "Use prepared statements. Disable behind PgBouncer older than 1.21 in transaction mode."
        ),
    ] = True
    max_prepared_mb: Annotated[
        int,
        About(
            "Memory limit for prepared statements, per connection (MB). Increase for many "
            "namespaces.",
            minimum=1,
        ),
    ] = 100
    migrate: Annotated[
        bool,
        About("Apply pending migrations at startup. Otherwise wait until `migrate up` has run."),
    ] = True
    allow_truncate: Annotated[bool, About("Enable the TruncateAll RPC.")] = False
    allow_create_namespace: Annotated[
        bool | None,
        About(
            "Enable the CreateNamespace RPC.",
            default_help="enabled if --listen is a loopback address or a Unix socket",
        ),
    ] = None
    max_namespaces: Annotated[
        int,
        About(
            "Maximum number of namespaces, besides `default`, that CreateNamespace may lead to.",
            minimum=1,
        ),
    ] = 1000
    allow_delete_namespace: Annotated[bool, About("Enable the DeleteNamespace RPC.")] = False
    allow_data_loss: Annotated[
        bool, About("Accept a database with fsync or synchronous_commit off.")
    ] = False
    reflection: Annotated[
        bool | None,
        About(
            "Enable gRPC server reflection, for callers that are authenticated if they have to be.",
            default_help="enabled if --listen is a loopback address or a Unix socket",
        ),
    ] = None
    max_message_bytes: Annotated[
        int,
        About(
            "Maximum size of a request and of a stored workflow (bytes). Clients must be "
            "configured to receive messages of this size.",
            minimum=8192,  # a header's fields that have bounds may have half of it
            # gRPC and libpq count bytes in 32 bits, and the server receives twice this size to
            # refuse it with a reason.
            maximum=512 * 1024 * 1024 - 1,
        ),
    ] = 4 * 1024 * 1024
    max_request_mb: Annotated[
        int,
        About(
            "Memory for requests (MB): half for those being received, half for those in progress. "
            "More large requests at a time wait or are refused.",
            minimum=1,
        ),
    ] = 128
    max_calls: Annotated[int, About("Maximum number of calls in progress.", minimum=1)] = 4000
    max_calls_per_connection: Annotated[
        int,
        About(
            "Maximum number of calls in progress over one client connection. Increase behind a "
            "proxy that combines many clients' calls in one connection.",
            minimum=1,
        ),
    ] = 1000
    max_connections: Annotated[
        int,
        About(
            "Maximum number of client connections, if the limit of file descriptors allows as "
            "many. Idle ones are closed when there are almost as many.",
            minimum=1,
        ),
    ] = 4000
    max_connection_idle: Annotated[
        float,
        About(
            "Time after which a client connection without calls is closed (seconds). Clients "
            "connect again when they need to.",
            above=0,
        ),
    ] = 300.0
    max_connection_age: Annotated[
        float,
        About(
            "Time after which a client must connect again (seconds, give or take 10 %), so that "
            "clients spread over servers that were added.",
            above=0,
        ),
    ] = 3600.0
    max_connection_grace: Annotated[
        float,
        About(
            "Time for the calls in progress to finish on a connection that has reached its "
            "maximum age (seconds); then they are UNAVAILABLE.",
            above=0,
        ),
    ] = 300.0
    default_deadline: Annotated[
        float, About("Deadline for calls that set none (seconds).", above=0)
    ] = 30.0
    max_deadline: Annotated[
        float,
        About(
            "Maximum deadline (seconds). A call that sets a later one, or none, ends after this "
            "time.",
            above=0,
        ),
    ] = 300.0
    stall_seconds: Annotated[
        float,
        About("Time for a client to read on before its stream is ended (seconds).", above=0),
    ] = 30.0
    drain_delay: Annotated[
        float | None,
        About(
            "Time at shutdown to go on answering while health is NOT_SERVING already, so that load "
            "balancers send new clients elsewhere (seconds).",
            default_help="3, or 0 if --listen is a loopback address or a Unix socket",
            minimum=0,
        ),
    ] = None
    drain_seconds: Annotated[
        float,
        About(
            "Time for calls in progress to finish at shutdown, after --drain-delay (seconds); then "
            "they are UNAVAILABLE.",
            above=0,
        ),
    ] = 5.0
    audit_log: Annotated[
        str,
        About(
            "File for a line of JSON about every write and every refused call: who, what, outcome, "
            "without payloads; - is stdout. Opened again on SIGHUP and when it was renamed.",
            metavar="FILE|-",
            default_help="none",
        ),
    ] = ""
    log_level: Annotated[
        str,
        About(
            "Minimum level of log messages, which go to stderr.",
            choices=("debug", "info", "warning", "error"),
        ),
    ] = "info"
    log_format: Annotated[
        str,
        About(
            "Log format. auto: text on a terminal, otherwise JSON, one object per line.",
            choices=("auto", "text", "json"),
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        for setting in SETTINGS.values():
            setting.validate(getattr(self, setting.name))
        Schema(self.schema, self.table_prefix)
        if not _MODE.fullmatch(self.socket_mode):
            raise ValueError("socket-mode: must be octal permissions, for example 0660")
        if self.listen.startswith("unix-abstract:"):
            raise ValueError(
                "listen: an abstract socket has no permissions, so every user could connect; use "
                "unix:PATH"
            )
        if self.db_url and self.db_url_file:
            raise ValueError("db-url-file: can't be set together with db-url")
        if self.db_password_file and self.db_password_command:
            raise ValueError("db-password-command: can't be set together with db-password-file")
        if not self.listen.startswith("unix:"):
            host, _, port = self.listen.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"listen: {self.listen!r} is neither HOST:PORT nor unix:PATH")

    def require_protection(self) -> None:
        """Raise ValueError if strangers could call a server with these settings without TLS and
        authentication, unless that is accepted; or if the settings of either are incomplete.

        Strangers are callers from other machines, and on a Unix socket other users than its owner
        and group.
        """
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
    def uses_embedded_database(self) -> bool:
        """Whether no database was named."""
        return not (self.db_url or self.db_url_file)

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


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of `Settings`, and the names it has elsewhere."""

    name: str
    type: type
    default: Any
    """The default value, or a function that returns it; None: it depends on other settings."""
    about: About

    @property
    def key(self) -> str:
        """The key in the TOML file, and its name in messages: `pool-size`."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """The command-line option: `--pool-size`; a bool has two: `--prepare/--no-prepare`."""
        return f"--{self.key}/--no-{self.key}" if self.type is bool else f"--{self.key}"

    @property
    def env(self) -> str:
        """The environment variable: `WFE_PERSISTENCE_POOL_SIZE`."""
        return ENV_PREFIX + self.name.upper()

    def validate(self, value: Any) -> None:
        """Raise ValueError, naming the setting, unless `value` is of its type and in bounds."""
        about = self.about
        if value is None and self.default is None:
            return
        accepted: Any = (int, float) if self.type is float else self.type
        # bool is a subclass of int.
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise ValueError(f"{self.key}: must be {_KINDS[self.type]}")
        if about.choices and value not in about.choices:
            raise ValueError(f"{self.key}: must be one of {', '.join(about.choices)}")
        if about.minimum is not None and value < about.minimum:
            raise ValueError(f"{self.key}: must be at least {about.minimum}")
        if about.maximum is not None and value > about.maximum:
            raise ValueError(f"{self.key}: must be at most {about.maximum}")
        # Negated, so that NaN is refused too.
        if about.above is not None and not value > about.above:
            raise ValueError(f"{self.key}: must be more than {about.above:g}")


_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
}


def _declared() -> dict[str, Setting]:
    hints = get_type_hints(Settings, include_extras=True)
    settings = {}
    for item in fields(Settings):
        type_, about = get_args(hints[item.name])
        if NoneType in get_args(type_):
            type_ = next(t for t in get_args(type_) if t is not NoneType)
        default = item.default_factory if item.default is MISSING else item.default
        settings[item.name] = Setting(item.name, type_, default, about)
    return settings


SETTINGS: Final = _declared()
"""All settings by name, in the order of their declaration."""
