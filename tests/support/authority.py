"""A certificate authority of the tests' own, and the files that it fills."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import trustme


class Authority:
    """Signs certificates; its own is in `ca_file`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = trustme.CA()
        self._directory = directory
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(self.ca.cert_pem.bytes())

    def issue(self, name: str, *identities: str, common_name: str | None = None) -> Pair:
        """A certificate and its key in files of their own."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        pair.fill(self, *identities, common_name=common_name)
        return pair

    def channel_credentials(self, client: Pair | None = None) -> grpc.ChannelCredentials:
        """What a client needs that trusts this authority and has this certificate."""
        return grpc.ssl_channel_credentials(
            self.ca_file.read_bytes(),
            client.key.read_bytes() if client else None,
            client.cert.read_bytes() if client else None,
        )


class Pair:
    """The files of a certificate, with its chain, and of its key."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.cert = cert
        self.key = key

    def fill(self, authority: Authority, *identities: str, common_name: str | None = None) -> None:
        """Write a new certificate and its key, one file after the other."""
        issued = authority.ca.issue_cert(*identities, common_name=common_name)
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        for file, content in ((self.key, issued.private_key_pem.bytes()), (self.cert, chain)):
            new = file.with_name(file.name + ".new")
            new.write_bytes(content)
            os.replace(new, file)
