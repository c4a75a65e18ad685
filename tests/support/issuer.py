"""An issuer of JSON Web Tokens of the tests' own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER = "https://issuer.example"
AUDIENCE = "wfe-persistence"

ALGORITHMS: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


@dataclass(frozen=True)
class SigningKey:
    """A key pair with an id."""

    id: str
    algorithm: str
    private: Any

    @property
    def jwk(self) -> dict[str, Any]:
        """Its public part."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = json.loads(algorithm.to_jwk(self.private.public_key()))
        public.pop("key_ops", None)
        return public | {"kid": self.id, "use": "sig", "alg": self.algorithm}

    @property
    def public_pem(self) -> bytes:
        """Its public part, as anybody may have it."""
        pem: bytes = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return pem


class Issuer:
    """Signs tokens with its newest key; its keys are in a JWKS file."""

    def __init__(self, file: Path, algorithm: str = "ES256") -> None:
        self.file = file
        self._algorithm = algorithm
        self.keys: list[SigningKey] = []
        self.rotate()

    def rotate(self) -> SigningKey:
        """A new key beside the old ones, published at once."""
        key = SigningKey(f"key-{len(self.keys)}", self._algorithm, ALGORITHMS[self._algorithm]())
        self.keys.append(key)
        self.publish()
        return key

    def jwks(self) -> bytes:
        """All keys as a JWKS."""
        return json.dumps({"keys": [key.jwk for key in self.keys]}).encode()

    def publish(self) -> None:
        """Write the JWKS, as a whole."""
        new = self.file.with_name(self.file.name + ".new")
        new.write_bytes(self.jwks())
        new.replace(self.file)

    def claims(self, subject: str = "engine", **changed: Any) -> dict[str, Any]:
        """The claims of a good token; None leaves one out."""
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": [AUDIENCE], "sub": subject, "iat": now, "nbf": now,
            "exp": now + 600,
        }  # fmt: skip
        return {key: value for key, value in (claims | changed).items() if value is not None}

    def token(
        self, subject: str = "engine", *, key: SigningKey | None = None, kid: str | None = None,
        **changed: Any,
    ) -> str:  # fmt: skip
        """A signed token. `kid`: another id of a key than the right one; empty: none."""
        key = key or self.keys[-1]
        headers = {"kid": key.id if kid is None else kid}
        return jwt.encode(
            self.claims(subject, **changed), key.private, key.algorithm,
            headers=headers if headers["kid"] else {},
        )  # fmt: skip

    def unsigned(self, subject: str = "engine") -> str:
        """A token with `alg: none`."""
        header = {"alg": "none", "typ": "JWT", "kid": self.keys[-1].id}
        return f"{encoded(header)}.{encoded(self.claims(subject))}."

    def confused(self, subject: str = "engine") -> str:
        """A token signed with HS256 and, as its secret, the public key (which libraries refuse to
        make)."""
        header = {"alg": "HS256", "typ": "JWT", "kid": self.keys[-1].id}
        text = f"{encoded(header)}.{encoded(self.claims(subject))}"
        mac = hmac.new(self.keys[-1].public_pem, text.encode(), hashlib.sha256).digest()
        return f"{text}.{_base64(mac)}"

    def tampered(self, subject: str) -> str:
        """A good token of somebody else in which the subject was changed afterwards."""
        header, _, signature = self.token("nobody").split(".")
        return f"{header}.{encoded(self.claims(subject))}.{signature}"


def encoded(part: dict[str, Any]) -> str:
    """A part of a token."""
    return _base64(json.dumps(part).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
