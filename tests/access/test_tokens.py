"""The file of tokens, and the commands that change it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfe_persistence.access import tokens
from wfe_persistence.access.tokens import create_token, parse_tokens, revoke_tokens

EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfe_persistence", "token", *arguments],
        capture_output=True, text=True, timeout=60, check=False, input=stdin,
    )  # fmt: skip


def read(file: Path) -> tokens.Tokens:
    return parse_tokens(file.read_bytes())


def test_create_list_revoke(file: Path) -> None:
    where = ("--token-file", str(file))
    created = run("create", "billing", "--expires-in", "90d", *where)
    assert created.returncode == 0, created.stderr
    secret = created.stdout.strip()
    assert re.fullmatch(r"wfe_[A-Za-z0-9_-]{43}", secret)
    assert secret not in created.stderr + file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = read(file).find(secret)
    assert found is not None
    assert (found.principal, found.id in created.stderr) == ("token:billing", True)
    assert found.expires is not None
    assert timedelta(days=89) < found.expires - datetime.now(UTC) < timedelta(days=91)

    other = run("create", "billing", *where).stdout.strip()
    listed = run("list", *where)
    assert listed.stdout.count("token:billing") == 2
    assert "does not expire" in listed.stdout
    assert secret not in listed.stdout
    [first, second] = json.loads(run("list", "--json", *where).stdout)
    assert first["id"] == found.id
    assert not second["expired"]

    revoked = run("revoke", found.id, *where)
    assert (revoked.returncode, found.id in revoked.stdout) == (0, True)
    assert read(file).find(secret) is None
    assert read(file).find(other) is not None
    assert run("revoke", "billing", *where).returncode == 0
    assert read(file).all == ()


def test_a_token_of_ones_own_comes_by_standard_input_and_is_not_printed(file: Path) -> None:
    secret = "of-ones-own-" + "x" * 40
    done = run("create", "billing", "--stdin", "--token-file", str(file), stdin=secret + "\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert secret not in done.stderr
    assert read(file).find(secret) is not None
    again = run("create", "billing", "--stdin", "--token-file", str(file), stdin=secret)
    assert (again.returncode, "already" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    "secret", ["", "\n", " ", "short", "x" * 31, "x" * 1025, "é" * 40, "a b" * 20]
)
def test_a_token_that_is_empty_short_or_cannot_be_sent_is_refused(file: Path, secret: str) -> None:
    done = run("create", "billing", "--stdin", "--token-file", str(file), stdin=secret)
    assert (done.returncode, done.stdout, file.exists()) == (1, "", False)
    assert "a token has 32 to 1024" in done.stderr
    assert not secret.strip() or secret not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("create", "a b"), "is no name"),
        (("create", "x", "--expires-in", "1w"), "must be like"),
        (("create", "x", "--expires-in", "0d"), "must be like"),
        (("revoke", "nobody"), "No such file"),
        (("list",), "No such file"),
    ],
)
def test_mistakes_are_named_and_make_no_file(
    file: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = run(*arguments, "--token-file", str(file))
    assert done.returncode in (1, 2)
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert not file.exists()


def test_without_a_file_the_option_is_asked_for() -> None:
    done = run("list")
    assert (done.returncode, "--token-file" in done.stderr) == (2, True)


def test_revoking_what_is_not_there_revokes_nothing(file: Path) -> None:
    kept, _ = create_token(file, "kept", None)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="nobody"):
        revoke_tokens(file, [kept.id, "nobody"])
    assert file.read_bytes() == before


def test_changes_at_the_same_time_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(lambda i: create_token(file, f"name{i}", None)[1], range(40)))
    found = read(file)
    assert all(found.find(secret) for secret in secrets)
    assert sorted(os.listdir(file.parent)) == [file.name]


def test_a_file_behind_a_link_keeps_the_link_the_owner_and_the_mode(tmp_path: Path) -> None:
    file = tmp_path / "real" / "tokens.json"
    file.parent.mkdir()
    create_token(file, "one", None)
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1234, 2345)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    create_token(link, "two", None)
    assert link.is_symlink()
    assert len(read(file).all) == 2
    found = file.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid) == (1234, 2345)


def test_a_file_that_anybody_may_write_is_refused(file: Path) -> None:
    create_token(file, "one", None)
    file.chmod(0o666)
    done = run("list", "--token-file", str(file))
    assert (done.returncode, "chmod o-w" in done.stderr) == (1, True)


GOOD = {
    "id": "a", "name": "n", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (None, "must be an object"),
        ([], "must be an object"),
        ({"tokens": {}}, "tokens: must be a list"),
        ({"tokens": [], "more": 1}, "must be an object"),
        ({"tokens": [GOOD, 1]}, "tokens[1]: must have"),
        ({"tokens": [GOOD | {"more": "x"}]}, "tokens[0]: must have"),
        ({"tokens": [GOOD | {"name": 1}]}, "tokens[0].name: must be a string"),
        ({"tokens": [GOOD | {"name": "a b"}]}, "tokens[0].name: 'a b'"),
        ({"tokens": [GOOD | {"sha256": "00"}]}, "tokens[0].sha256: must be 64"),
        ({"tokens": [GOOD | {"sha256": EMPTY}]}, "the empty token"),
        ({"tokens": [GOOD | {"created": "yesterday"}]}, "tokens[0].created"),
        ({"tokens": [GOOD | {"expires": "2026-01-01T00:00:00"}]}, "no time zone"),
        ({"tokens": [GOOD, GOOD | {"sha256": "1" * 64}]}, "same id"),
        ({"tokens": [GOOD, GOOD | {"id": "b"}]}, "same digest"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(document: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_tokens(json.dumps(document).encode())


def test_the_empty_token_is_never_found() -> None:
    token = tokens.Token("a", "n", bytes.fromhex(EMPTY), datetime.now(UTC), None)
    assert tokens.Tokens([token]).find("") is None


def test_hashes_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the comparison is the one of `hmac`, of whole SHA-256 hashes."""
    secret = "x" * 40
    digest = hashlib.sha256(secret.encode()).digest()
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    token = tokens.Token("a", "n", digest, datetime.now(UTC), None)
    assert tokens.Tokens([token]).find(secret) is None
    assert compared == [(digest, digest)]
