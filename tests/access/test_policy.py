"""The policy file: what it means, what is wrong with it, and `policy check`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wfe_persistence.access.certificate import certificate_principal
from wfe_persistence.access.policy import parse_anonymous_policy, parse_policy
from wfe_persistence.access.principal import KINDS, principal
from wfe_persistence.access.role import Role

POLICY = """
[[grant]]
principals = ["token:billing", "jwt:system:serviceaccount:prod:*"]
role = "host"
namespaces = ["prod", "prod_*"]

[[grant]]
principals = ["token:billing"]
role = "operator"
namespaces = ["prod_eu"]

[[grant]]
principals = ["spiffe://example.org/ops/*", "cert:root"]
role = "admin"
namespaces = ["*"]
"""


@pytest.mark.parametrize(
    ("who", "namespace", "role"),
    [
        ("token:billing", "prod", Role.HOST),
        ("token:billing", "prod_", Role.HOST),
        ("token:billing", "prod_us", Role.HOST),
        ("token:billing", "prod_eu", Role.OPERATOR),
        ("token:billing", "prod_eu2", Role.HOST),
        ("token:billing", "production", None),
        ("token:billing", "pro", None),
        ("token:billing", "default", None),
        ("token:billing", "", None),
        ("token:billing2", "prod", None),
        ("jwt:billing", "prod", None),
        ("jwt:system:serviceaccount:prod:engine", "prod", Role.HOST),
        ("jwt:system:serviceaccount:prod:", "prod", Role.HOST),
        ("jwt:system:serviceaccount:production:engine", "prod", None),
        ("token:system:serviceaccount:prod:engine", "prod", None),
        ("spiffe://example.org/ops/anna", "anything", Role.ADMIN),
        ("spiffe://example.org.evil/ops/anna", "anything", None),
        ("cert:spiffe://example.org/ops/anna", "anything", None),
        ("jwt:spiffe://example.org/ops/anna", "anything", None),
        ("cert:root", "default", Role.ADMIN),
        ("cert:root*", "default", None),
        ("token:root", "default", None),
    ],
)
def test_the_role_is_the_highest_of_all_grants_that_match(
    who: str, namespace: str, role: Role | None
) -> None:
    rights = parse_policy(POLICY.encode()).rights(who)
    assert rights.role(namespace) == role
    for asked in Role:
        assert rights.allow(asked, namespace) == (role is not None and role >= asked)


def test_an_empty_policy_denies_everything() -> None:
    rights = parse_policy(b"").rights("token:root")
    assert not rights.allow(Role.READER, "default")
    assert not rights.allow_somewhere(Role.READER)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("limit = 1", "limit: must be written as [[limit]]"),
        ("[[limit]]", "limit 1: principals and namespaces are missing"),
        ("[[limit]]", "limit 1: limits nothing"),
        ("[[limit]]\nmax_call = 1", "limit 1: unknown key 'max_call'"),
        ("[[limit]]\nmax_calls = 0", "limit 1: max_calls: must be an integer from 1"),
        ("[[limit]]\nmax_calls = true", "limit 1: max_calls: must be an integer from 1"),
        ("[[limit]]\nmax_rows = 1.5", "limit 1: max_rows: must be an integer from 1"),
        ("[[limit]]\ncalls_per_second = 0", "limit 1: calls_per_second: must be a number"),
        ("[[limit]]\ncalls_per_second = nan", "limit 1: calls_per_second: must be a number"),
        ("[[limit]]\ncalls_per_second = '1'", "limit 1: calls_per_second: must be a number"),
        ("[[limit]]\nburst = 2", "limit 1: burst: needs calls_per_second"),
        ('[[limit]]\nprincipals = ["*"]', "limit 1: principals: '*' must begin with token:"),
        ('[[limit]]\nnamespaces = ["Prod"]', "limit 1: namespaces: 'Prod' is neither"),
        (
            '[[limit]]\nprincipals = ["token:x"]\nmax_rows = 1',
            "limit 1: max_rows and max_mb are of namespaces",
        ),
        ("grant = 1", "grant: must be written as [[grant]]"),
        ("[grant]", "grant: must be written as [[grant]]"),
        ("[[grants]]", "unknown key 'grants'"),
        ("[[grant]", "is not valid TOML"),
        ("\xff", "is not valid TOML"),
        ("[[grant]]", "grant 1: namespaces is missing; grant 1: principals is missing; grant 1: r"),
        ("[[grant]]\nroles = 1", "grant 1: unknown key 'roles'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_policy(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("role", '"god"', "role: 'god' is none of monitor, reader, host, operator, admin"),
        ("role", '"HOST"', "role: 'HOST' is none"),
        ("role", '["host"]', "role: ['host'] is none"),
        ("principals", "[]", "principals: must be a list of at least one string"),
        ("principals", '"token:x"', "principals: must be a list"),
        ("principals", "[1]", "principals: must be a list"),
        ("principals", '["*"]', "principals: '*' must begin with token:"),
        ("principals", '["tok*"]', "principals: 'tok*' must begin with token:"),
        ("principals", '["token:"]', "principals: 'token:' must begin"),
        ("principals", '["billing"]', "principals: 'billing' must begin"),
        ("principals", '["token:*x"]', "principals: 'token:*x' has a * that is not at its end"),
        ("principals", '["token:a\\nb"]', "principals: 'token:a\\nb' must be printable text"),
        ("namespaces", '["Prod"]', "namespaces: 'Prod' is neither"),
        ("namespaces", '[""]', "namespaces: '' is neither"),
        ("namespaces", '["*prod"]', "namespaces: '*prod' has a * that is not at its end"),
        ("namespaces", '["prod**"]', "namespaces: 'prod**' has a * that is not at its end"),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(key: str, value: str, problem: str) -> None:
    good = {"principals": '["token:x"]', "role": '"host"', "namespaces": '["prod"]'}
    entry = (good | {key: value}).items()
    text = POLICY + "[[grant]]\n" + "\n".join(f"{name} = {value}" for name, value in entry)
    with pytest.raises(ValueError, match=re.escape(f"grant 4: {problem}")) as caught:
        parse_policy(text.encode())
    assert str(caught.value).count("grant ") == 1


def check(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfe_persistence", "policy", "check", str(file), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_policy_check(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    assert (done := check(file)).returncode == 1
    assert "policy.toml: No such file" in done.stderr
    file.write_text(POLICY)
    assert (done := check(file)).returncode == 0
    assert done.stdout == f"{file}: valid; number of grants: 3, of limits: 0\n"

    def ask(who: str, namespace: str, rpc: str) -> tuple[int, str]:
        done = check(file, "--principal", who, "--namespace", namespace, "--rpc", rpc)
        return done.returncode, done.stdout + done.stderr

    assert ask("token:billing", "prod", "PersistWorkflow") == (
        0,
        "allowed: token:billing has the role host in prod; PersistWorkflow requires host\n",
    )
    assert ask("token:billing", "prod", "DeleteWorkflow") == (
        1,
        "denied: token:billing has the role host in prod; DeleteWorkflow requires operator\n",
    )
    status, said = ask("token:nobody", "prod", "GetEvent")
    assert (status, "token:nobody has no role in prod" in said) == (1, True)
    assert ask("billing", "prod", "GetEvent")[0] == 2
    assert ask("token:billing", "prod", "GetEvnt")[0] == 2
    assert (
        "the role host" in check(file, "--principal", "token:billing", "--namespace", "prod").stdout
    )
    file.write_text(POLICY.replace('"host"', '"guest"'))
    done = check(file)
    assert (done.returncode, done.stdout) == (1, "")
    assert "grant 1: role: 'guest' is none of" in done.stderr


def test_no_principal_is_of_two_kinds() -> None:
    for one in KINDS:
        for other in KINDS:
            assert one == other or not principal(one, f"{other}x").startswith(other)


@pytest.mark.parametrize(
    "name", ["", " ", " x", "x ", "a\nb", "a\0b", "\u202ex", "x" * 256, "é" * 128]
)
def test_what_is_no_name_makes_no_principal(name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        principal("jwt:", name)


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, None),
        ({"transport_security_type": [b"ssl"]}, None),
        ({"x509_common_name": [b""]}, None),
        ({"x509_common_name": [b"engine"]}, "cert:engine"),
        ({"x509_common_name": ["Größe".encode()]}, "cert:Größe"),
        ({"x509_common_name": [b"spiffe://td/x"]}, "cert:spiffe://td/x"),
        (
            {"x509_common_name": [b"x"], "peer_uri": [b"spiffe://td/a"],
             "peer_spiffe_id": [b"spiffe://td/a"]},
            "spiffe://td/a",
        ),
        ({"x509_common_name": [b"x"], "peer_uri": [b"https://td/a"]}, "cert:x"),
        # A DNS name that looks like a SPIFFE ID is none.
        (
            {"x509_common_name": [b"x"], "peer_dns": [b"spiffe://td/a"],
             "x509_subject_alternative_name": [b"spiffe://td/a"]},
            "cert:x",
        ),
    ],
)  # fmt: skip
def test_the_principal_of_a_certificate(
    properties: dict[str, list[bytes]], expected: str | None
) -> None:
    assert certificate_principal(properties) == expected


@pytest.mark.parametrize(
    "properties",
    [
        {"x509_common_name": [b"x"], "peer_uri": [b"spiffe://td/a", b"spiffe://td/b"]},
        {"x509_common_name": [b"x"], "peer_uri": [b"SPIFFE://td/a"]},
        {"x509_common_name": [b"x"], "peer_uri": [b"spiffe:a"]},
        {"peer_spiffe_id": [b"spiffe://td/a", b"spiffe://td/b"]},
        {"peer_spiffe_id": [b"http://td/a"]},
        {"peer_spiffe_id": [b"spiffe://td/\xff"]},
        {"x509_common_name": [b"a", b"b"]},
        {"x509_common_name": [b"a\nb"]},
        {"x509_common_name": [b"\xff"]},
    ],
)
def test_a_certificate_of_two_or_without_a_proper_name_is_nobodys(
    properties: dict[str, list[bytes]],
) -> None:
    with pytest.raises(ValueError, match=r"must|has|values|codec"):
        certificate_principal(properties)


LIMITS = """
[[limit]]
principals = ["token:billing"]
max_calls = 50

[[limit]]
principals = ["token:*"]
calls_per_second = 10
burst = 20

[[limit]]
namespaces = ["prod_eu"]
max_rows = 1000

[[limit]]
namespaces = ["prod_*"]
max_calls = 7
max_mb = 5

[[limit]]
principals = ["token:*"]
namespaces = ["prod_eu"]
calls_per_second = 0.5
"""


@pytest.mark.parametrize(
    ("who", "namespace", "of_principal", "of_namespace", "of_both"),
    [
        ("token:billing", "default", "max_calls = 50", None, None),
        ("token:other", "default", "calls_per_second = 10, burst = 20", None, None),
        ("cert:other", "default", None, None, None),
        ("cert:other", "prod_us", None, "max_calls = 7, max_mb = 5", None),
        (
            "token:billing", "prod_eu",
            "max_calls = 50", "max_rows = 1000", "calls_per_second = 0.5, burst = 1",
        ),
        ("token:billing", "", "max_calls = 50", None, None),
    ],
)  # fmt: skip
def test_of_each_kind_the_first_limit_that_matches_counts(
    who: str,
    namespace: str,
    of_principal: str | None,
    of_namespace: str | None,
    of_both: str | None,
) -> None:
    limits = parse_policy(LIMITS.encode()).limits(who, namespace)
    found = (limits.of_principal, limits.of_namespace, limits.of_both)
    assert tuple(limit and str(limit) for limit in found) == (of_principal, of_namespace, of_both)


def test_without_authentication_there_are_limits_of_namespaces_only() -> None:
    own = '[[limit]]\nnamespaces = ["*"]\nmax_calls = 1\n'
    assert parse_anonymous_policy(own.encode()).limits("", "default").of_namespace
    for text in (POLICY, LIMITS):
        with pytest.raises(ValueError, match="have no effect without authentication"):
            parse_anonymous_policy(text.encode())


def test_policy_check_shows_limits(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY + LIMITS)
    assert "number of grants: 3, of limits: 5" in check(file).stdout
    done = check(file, "--principal", "token:billing", "--namespace", "prod_eu")
    assert done.stdout.splitlines()[1:] == [
        "limit of token:billing: max_calls = 50",
        "limit of prod_eu: max_rows = 1000",
        "limit of token:billing in prod_eu: calls_per_second = 0.5, burst = 1",
    ]
