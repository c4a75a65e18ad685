"""What a server with mutual TLS and tokens reads, and what its clients need."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.support.authority import Authority
from tests.support.server import ServerProcess
from wfe_persistence.access import tokens

PRINCIPAL = "host"


class Secured:
    """The files, and a server that lets in the principal `token:host`, with a certificate."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.authority = Authority(directory / "certificates")
        pair = self.authority.issue("server", "localhost", "127.0.0.1")
        self.client = self.authority.issue("client", "client.test", common_name="client")
        # Java reads no other format.
        key = load_pem_private_key(self.client.key.read_bytes(), None)
        self.client.key.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        self.hashes = directory / "tokens.json"
        self.token = self.new_token()
        self.token_file = directory / "token"
        self.token_file.write_text(self.token + "\n")
        policy = directory / "policy.toml"
        policy.write_text(
            f'[[grant]]\nprincipals = ["token:{PRINCIPAL}"]\nrole = "host"\nnamespaces = ["*"]\n'
        )
        self.server = ServerProcess(
            directory / "log", "--db-url", database_url,
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--tls-client-ca", str(self.authority.ca_file),
            "--token-file", str(self.hashes), "--policy-file", str(policy),
        )  # fmt: skip
        self.server.credentials = self.authority.channel_credentials(self.client)

    def new_token(self) -> str:
        """Another token of the principal."""
        return tokens.create_token(self.hashes, PRINCIPAL, None)[1]

    def environment(self) -> dict[str, str]:
        """What a host of the examples is told, beside what this process has."""
        return {
            **os.environ,
            "WFE_TLS_CA": str(self.authority.ca_file),
            "WFE_TLS_CERT": str(self.client.cert),
            "WFE_TLS_KEY": str(self.client.key),
            "WFE_TOKEN_FILE": str(self.token_file),
        }

    def channel(self) -> grpc.aio.Channel:
        """A channel of a client that is let in."""
        assert self.server.credentials is not None
        return grpc.aio.secure_channel(
            self.server.address,
            grpc.composite_channel_credentials(
                self.server.credentials, grpc.access_token_call_credentials(self.token)
            ),
        )
