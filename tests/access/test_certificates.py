"""Client certificates as principals, on real connections with mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.access.conftest import OWN, POLICY, GuardedServer, bearer, running
from tests.support.api import Api
from tests.support.expect import Failure, failure_of
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest

CERTIFICATES = (
    '[[grant]]\nprincipals = ["cert:engine", "spiffe://example.org/engine"]\nrole = "host"\n'
    f'namespaces = ["{OWN}"]\n'
)


class Authority:
    """A certificate authority that signs any names, as one that is careless may."""

    def __init__(self, directory: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_names(["authority"])
        self.file = directory / "authority.pem"
        self.file.write_bytes(
            self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        )

    def issue(
        self, names: Sequence[str] = (), alternatives: Sequence[x509.GeneralName] = ()
    ) -> tuple[bytes, bytes]:
        """A key and a certificate, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = [x509.SubjectAlternativeName(alternatives)] if alternatives else []
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem, self._signed(_common_names(names), key, *extensions)

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *extensions: x509.ExtensionType,
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


def _common_names(names: Sequence[str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


class MutualServer(GuardedServer):
    """A guarded server with mutual TLS."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.authority = Authority(directory)
        local = [x509.IPAddress(ip_address("127.0.0.1"))]
        self._files = []
        for name, content in zip(("key", "cert"), self.authority.issue((), local), strict=True):
            self._files.append(directory / f"server.{name}")
            self._files[-1].write_bytes(content)
        self.policy_file.write_text(POLICY + CERTIFICATES)

    @property
    def arguments(self) -> tuple[str, ...]:
        key, cert = self._files
        return (
            *super().arguments, "--tls-key", str(key), "--tls-cert", str(cert),
            "--tls-client-ca", str(self.authority.file),
        )  # fmt: skip

    def credentials(self, pair: tuple[bytes, bytes]) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority.file.read_bytes(), *pair)

    def any_credentials(self) -> grpc.ChannelCredentials:
        return self.credentials(self.authority.issue(["anybody"]))

    async def call(
        self,
        names: Sequence[str],
        alternatives: Sequence[x509.GeneralName] = (),
        *metadata: tuple[str, str],
    ) -> Failure | None:
        """How a call with a certificate fails; None: it does not."""
        credentials = self.credentials(self.authority.issue(names, alternatives))
        async with grpc.aio.secure_channel(
            self.server.address, credentials, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            return await failure_of(
                Api(channel).store.GetStoreInfo(
                    GetStoreInfoRequest(), metadata=[("wfe-namespace", OWN), *metadata]
                )
            )


@pytest.fixture(scope="module")
def mutual(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MutualServer]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE access_certificates")
    mutual = MutualServer(tmp_path_factory.mktemp("mutual"))
    with running(mutual, postgres_url.replace("/postgres?", "/access_certificates?")):
        yield mutual


def spiffe(path: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(f"spiffe://example.org/{path}")


@pytest.mark.parametrize(
    ("names", "alternatives", "principal"),
    [
        (["engine"], [], None),
        (["whoever"], [spiffe("engine")], None),
        (["engine2"], [], "cert:engine2"),
        # The SPIFFE ID is who it is, whatever else it says.
        (["engine"], [spiffe("other")], "spiffe://example.org/other"),
        (["engine"], [x509.DNSName("spiffe://example.org/engine")], None),
        (["x"], [x509.DNSName("spiffe://example.org/engine")], "cert:x"),
        (["spiffe://example.org/engine"], [], "cert:spiffe://example.org/engine"),
        (["token:root"], [], "cert:token:root"),
    ],
)
async def test_a_certificate_is_a_principal(
    mutual: MutualServer,
    names: list[str],
    alternatives: list[x509.GeneralName],
    principal: str | None,
) -> None:
    failure = await mutual.call(names, alternatives)
    if principal is None:
        assert failure is None
        return
    assert failure is not None
    assert (failure.reason, failure.metadata.get("principal")) == ("ACCESS_DENIED", principal)


async def test_a_certificate_of_two_or_of_nobody_is_refused(mutual: MutualServer) -> None:
    failure = await mutual.call(["engine"], [spiffe("engine"), spiffe("other")])
    assert failure is not None
    assert failure.reason == "CREDENTIALS_INVALID"
    failure = await mutual.call([], [x509.DNSName("engine")])
    assert failure is not None
    assert failure.reason == "CREDENTIALS_REQUIRED"


async def test_a_token_decides_alone(mutual: MutualServer) -> None:
    assert await mutual.call(["nobody"], [], bearer(mutual.tokens["host"])) is None
    failure = await mutual.call(["engine"], [], bearer(mutual.tokens["stranger"]))
    assert failure is not None
    assert (failure.reason, failure.metadata["principal"]) == ("ACCESS_DENIED", "token:stranger")


async def test_a_bad_token_is_not_made_good_by_a_certificate(mutual: MutualServer) -> None:
    assert await mutual.call(["engine"]) is None
    for value in ("Bearer bad", "Bearer", "Basic YTpi", "", f"Bearer {mutual.tokens['expired']}"):
        failure = await mutual.call(["engine"], [], ("authorization", value))
        assert failure is not None
        assert failure.code == grpc.StatusCode.UNAUTHENTICATED
