"""Faults in who is let in, for `faulty_server`, and the test that must catch each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from wfe_persistence.access import jwt as access_jwt
from wfe_persistence.access import tokens
from wfe_persistence.access.access import Access
from wfe_persistence.access.certificate import Properties
from wfe_persistence.access.role import Role
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import audit, boundary, services
from wfe_persistence.rpc.audit import Entry
from wfe_persistence.rpc.guard import Caller, Guard
from wfe_persistence.rpc.limits import Accounts, Key
from wfe_persistence.rpc.services import Method
from wfe_persistence.store.tables import Store


def plant(holder: Any, name: str, replacement: Any) -> None:
    """Put the fault in the place of what is right."""
    assert hasattr(holder, name), f"{name} has changed: plant the fault anew"
    setattr(holder, name, replacement)


def plant_permission_left_out() -> None:
    """One RPC of fifty that any reader may call."""
    services.REQUIRED_ROLE["PurgeEvents"] = Role.READER


def plant_stream_without_guard() -> None:
    """Permissions are asked for where most calls pass, but not where streams do."""
    require = Guard.require

    def require_of_some(
        self: Guard, caller: Caller, role: Role, namespace: str | None, what: str
    ) -> None:
        if what != "GetWorkflowInstances":
            require(self, caller, role, namespace, what)

    plant(Guard, "require", require_of_some)


def plant_compare_that_stops_early() -> None:
    """As many bytes as they have in common, compared one after the other, of a hash cut short."""

    def find(self: tokens.Tokens, secret: str) -> tokens.Token | None:
        digest = hashlib.sha256(secret.encode()).digest()[:2]
        for token in self.all:
            if all(a == b for a, b in zip(digest, token.digest, strict=False)):
                return token
        return None

    plant(tokens.Tokens, "find", find)


def plant_unverified_claims() -> None:
    """Who calls is read from a token before its signature is looked at, and then never again."""
    import jwt

    async def verify(self: access_jwt.JwtVerifier, token: str) -> access_jwt._Verified:
        claims = jwt.decode(token, options={"verify_signature": False})
        return access_jwt._Verified(f"jwt:{claims['sub']}", 2.0**40, self.keys.current)

    plant(access_jwt.JwtVerifier, "_verify", verify)


def plant_namespace_before_permission() -> None:
    """The namespace is looked up, and only then it is asked whether the caller may."""
    look_up = boundary.Boundary._namespace

    async def identify(
        self: boundary.Boundary, context: Any, method: Method, entry: Entry
    ) -> Caller:
        entry.caller = await self._guard.identify(context)
        return entry.caller

    async def namespace(self: boundary.Boundary, caller: Caller, method: Method) -> Store:
        store = await look_up(self, caller, method)
        asked = None if method.server_wide else caller.namespace
        self._guard.require(caller, method.required_role, asked, method.name)
        return store

    plant(boundary.Boundary, "_identify", identify)
    plant(boundary.Boundary, "_namespace", namespace)


def plant_fall_back_to_certificate() -> None:
    """A bad token is passed over if there is a certificate."""
    identify = Access.identify

    async def any_of_them(
        self: Access, authorization: Sequence[str | bytes], properties: Properties
    ) -> str:
        try:
            return await identify(self, authorization, properties)
        except PersistenceError:
            return await identify(self, (), properties)

    plant(Access, "identify", any_of_them)


def plant_account_of_all_principals() -> None:
    """All principals together have what the limit gives to each."""
    find = Accounts._find

    def find_that_of_all(self: Accounts, key: Key) -> Any:
        return find(self, ("", key[1]))

    plant(Accounts, "_find", find_that_of_all)


def plant_full_namespace_that_takes_writes() -> None:
    """One of the RPCs that add is forgotten."""
    services.ADDS -= {"CreateEvent"}  # type: ignore[misc]


def plant_hang_up_out_of_the_audit_log() -> None:
    """Whoever hangs up leaves no trace."""
    ended = Entry.ended

    def unless_cancelled(self: Entry, outcome: str, reason: Any = None) -> None:
        if outcome != "CANCELLED":
            ended(self, outcome, reason)

    plant(Entry, "ended", unless_cancelled)


def plant_payload_in_the_audit_log() -> None:
    """A field of data passes for an id."""
    audit.ID_FIELDS["Event"] = ("id", "event_data_json")


_MATRIX = "../access/test_matrix.py::test_a_role_may_call_what_it_is_for_in_its_namespace_only"
_LIMITS = "../access/test_limits.py::"
_AUDIT = (
    "../access/test_audit.py::"
    "test_every_write_is_logged_with_its_ids_and_nothing_else_of_the_request"
)
_CREDENTIALS = "../access/test_credentials.py::"

ACCESS_FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "a permission left out": (plant_permission_left_out, f"{_MATRIX}[PurgeEvents]"),
    "a stream that needs no permission": (
        plant_stream_without_guard,
        f"{_MATRIX}[GetWorkflowInstances]",
    ),
    "a compare that stops early": (
        plant_compare_that_stops_early,
        f"{_CREDENTIALS}test_a_token_whose_hash_begins_or_ends_as_that_of_a_good_one_is_none",
    ),
    "identity from unverified claims": (
        plant_unverified_claims,
        f"{_CREDENTIALS}test_a_forged_jwt_is_refused",
    ),
    "the namespace before the permission": (
        plant_namespace_before_permission,
        f"{_MATRIX}[GetStoreInfo]",
    ),
    "a certificate in the place of a bad token": (
        plant_fall_back_to_certificate,
        "../access/test_certificates.py::test_a_bad_token_is_not_made_good_by_a_certificate",
    ),
    "one account for all principals": (
        plant_account_of_all_principals,
        f"{_LIMITS}test_a_rate_is_kept_and_waiting_as_told_gets_every_call_through",
    ),
    "a full namespace that takes writes": (
        plant_full_namespace_that_takes_writes,
        f"{_LIMITS}test_a_namespace_that_is_full_of_rows_takes_writes_again_after_deletes",
    ),
    "a write that is not audited if its client hangs up": (
        plant_hang_up_out_of_the_audit_log,
        "../access/test_audit.py::test_a_write_whose_client_hangs_up_is_logged",
    ),
    "a payload in the audit log": (
        plant_payload_in_the_audit_log,
        f"{_AUDIT}[CreateEvent]",
    ),
}
