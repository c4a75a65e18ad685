"""Settings of the network: where the server listens, and who may call it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from wfe_persistence.settings.setting import About

DEFAULT_LISTEN: Final = "127.0.0.1:50052"


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server listens."""

    listen: Annotated[
        str,
        About("Listen address: HOST:PORT (port 0: any free port) or unix:PATH.", metavar="ADDRESS"),
    ] = DEFAULT_LISTEN
    admin_listen: Annotated[
        str,
        About(
            "Listen address of the admin port: HTTP with /livez, /readyz, /metrics, /config and "
            "/version. With tls-cert it is HTTPS.",
            metavar="HOST:PORT",
            default_help="none",
        ),
    ] = ""
    socket_mode: Annotated[
        str,
        About(
            "Permissions of a Unix socket, in octal: who may connect. 0660 lets the group, 0666 "
            "everybody.",
            metavar="MODE",
        ),
    ] = "0600"


@dataclass(frozen=True, kw_only=True)
class Console:
    """The console: a page in a browser, on the admin port."""

    console: Annotated[
        bool,
        About(
            "Serve the console at /console/ of the admin port: pages that show workflows and what "
            "they wait for. With authentication, people log in with their bearer token. Needs "
            "admin-listen."
        ),
    ] = False
    console_write: Annotated[
        bool,
        About(
            "Let the console also suspend, resume, terminate and delete workflows, and release "
            "claims and locks, for callers whose role allows it."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS of the listen address."""

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


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may call the server, and what callers may do."""

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


@dataclass(frozen=True, kw_only=True)
class Connections:
    """Connections of clients."""

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
