"""One name end to end: an RPC without its servicer, statement or test fails here."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence.access.role import Role
from wfe_persistence.rpc import check
from wfe_persistence.rpc.services import (
    ADDS,
    NAMESPACE_FIELD,
    READS,
    REQUIRED_ROLE,
    SERVER_WIDE,
    SERVICES,
    SET_FIELD,
    WRITES_APART,
    Service,
)
from wfe_persistence.rpc.status import STATUS_OF, reason_name, violation_name
from wfe_persistence.store import (
    admin,
    bulk,
    command,
    commit,
    database_list,
    dequeue,
    error_log,
    event,
    export,
    importing,
    lifecycle,
    lock,
    name_holder,
    namespace_list,
    namespace_set,
    pointer,
    purge,
    queue,
    queue_list,
    queue_settling,
    retention,
    storage,
    subscription,
    workflow,
    workflow_changes,
    workflow_list,
    workflow_waiting,
)

STORE: tuple[ModuleType, ...] = (
    admin,
    bulk,
    command,
    commit,
    database_list,
    dequeue,
    error_log,
    event,
    export,
    importing,
    lifecycle,
    lock,
    namespace_list,
    pointer,
    name_holder,
    namespace_set,
    purge,
    retention,
    storage,
    queue,
    queue_list,
    queue_settling,
    subscription,
    workflow,
    workflow_changes,
    workflow_list,
    workflow_waiting,
)
# What has no function or no statement of its own, and why.
WITHOUT_FUNCTION = {
    "PersistWorkflowWithSubscriptions": "is persist_workflow with subscriptions",
    "EnsureStoreExists": "is readiness.ensure_store_exists, which migrates",
    "GetStoreInfo": "is put together from admin, migrate and the configuration",
    "CreateNamespace": "is Namespaces.create_namespace, which migrates",
    "DeleteNamespace": "is Namespaces.delete_namespace, which drops a schema",
    "CreateNamespaceSet": "is namespace_set.create_namespace_set, which creates namespaces",
    "DeleteNamespaceSet": "is namespace_set.delete_namespace_set, which deletes namespaces",
    "MoveNamespace": "is Mover.move, of many statements in two databases",
    "AbortMoveNamespace": "is Mover.abort",
}
METHODS = [method.descriptor for service in SERVICES for method in service.methods]
SERVICERS = {service.name: service.servicer for service in SERVICES}
TESTS = Path(__file__).parent


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _name(method: MethodDescriptor) -> str:
    return str(method.name)


def _declared_services() -> list[ServiceDescriptor]:
    """Those of all proto files, whether anything imports them or not."""
    files = (TESTS.parent / "protos/wfe/persistence/v1").glob("*.proto")
    modules = [import_module(f"wfe.persistence.v1.{file.stem}_pb2") for file in files]
    return [s for module in modules for s in module.DESCRIPTOR.services_by_name.values()]


def test_every_service_is_registered_once() -> None:
    registered = sorted(service.name for service in SERVICES)
    assert registered == sorted(service.full_name for service in _declared_services())


def test_names_of_methods_are_unique() -> None:
    """So that a name alone is the key of a table of their properties."""
    assert len({method.name for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize(
    "table",
    [SERVER_WIDE, NAMESPACE_FIELD, SET_FIELD, REQUIRED_ROLE, ADDS, READS, WRITES_APART],
    ids=[
        "SERVER_WIDE",
        "NAMESPACE_FIELD",
        "SET_FIELD",
        "REQUIRED_ROLE",
        "ADDS",
        "READS",
        "WRITES_APART",
    ],
)
def test_no_table_of_methods_has_one_that_does_not_exist(table: Collection[str]) -> None:
    assert set(table) <= {method.name for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=_name)
def test_every_method_has_the_role_that_it_requires(method: MethodDescriptor) -> None:
    assert method.name in REQUIRED_ROLE


def test_it_is_decided_where_each_method_reads_that_changes_nothing() -> None:
    assert set(READS) == {name for name, role in REQUIRED_ROLE.items() if role == Role.READER}


def test_what_adds_is_all_that_hosts_do_but_for_claims_and_what_ends_something() -> None:
    """A full namespace refuses it; it must not refuse what frees space or lets work be finished."""
    hosts_do = {name for name, role in REQUIRED_ROLE.items() if role == Role.HOST}
    assert hosts_do - ADDS == {
        "MarkEventProcessed",
        "MarkEventUnprocessed",
        "TerminateSubscription",
        "SetSubscriptionToken",
        "ClearSubscriptionToken",
        "RenewSubscriptionToken",
        "ClaimCommands",
        "CompleteCommands",
        "ReleaseCommands",
        "RenewCommands",
        "AcquireLock",
        "RenewLocks",
        "ReleaseLock",
        "Dequeue",
        "Acknowledge",
        "ReturnItems",
        "RenewItems",
        "EnsureStoreExists",
    }
    # An import is the operator's, and what frees space stays possible.
    assert hosts_do >= ADDS - {"ImportRecords"}


def test_a_namespace_field_is_one_of_a_server_wide_method() -> None:
    assert {*NAMESPACE_FIELD, *SET_FIELD} <= SERVER_WIDE
    for method in METHODS:
        if method.name in NAMESPACE_FIELD:
            assert NAMESPACE_FIELD[method.name] in method.input_type.fields_by_name


@pytest.mark.parametrize("method", METHODS, ids=_name)
def test_every_method_has_its_servicer_method(method: MethodDescriptor) -> None:
    function = getattr(SERVICERS[method.containing_service.full_name], method.name)
    if method.client_streaming:  # a context, for as long as the stream lasts
        function = function.__wrapped__
    is_right = (
        inspect.isasyncgenfunction if method.server_streaming else inspect.iscoroutinefunction
    )
    assert is_right(function)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_no_servicer_has_more_than_its_methods(service: Service) -> None:
    public = {name for name in vars(service.servicer) if not name.startswith("_")}
    assert public == {method.name for method in service.methods}


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.name not in WITHOUT_FUNCTION], ids=_name
)
def test_every_method_has_its_store_function_and_statement(method: MethodDescriptor) -> None:
    name = _snake(method.name)
    [module] = [module for module in STORE if {name, name.upper()} <= set(vars(module))]
    assert inspect.isfunction(getattr(module, name))
    sql = getattr(module, name.upper())
    # One for each view and order, where it depends on them.
    assert all(isinstance(text, str) for text in (sql.values() if isinstance(sql, dict) else [sql]))
    # The statement stands above the function, and nothing but other statements in between.
    body = ast.parse(inspect.getsource(module)).body
    places = [_defined(node) for node in body]
    at = places.index(name)
    above = places[:at][::-1]
    assert name.upper() in above
    between = above[: above.index(name.upper())]
    assert all(place.isupper() for place in between), between


def _defined(node: ast.stmt) -> str:
    """The name that a statement of a module defines; a docstring defines none."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return "DOCSTRING"


@cache
def _called_in_conformance() -> set[str]:
    """The names of all RPCs that conformance tests call: `api.get_event`, `api.events.GetEvent`,
    `own.api.claim_commands`."""
    return {
        node.attr
        for path in (TESTS / "conformance").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and "api" in ast.unparse(node.value).split(".")[:2]
    }


@pytest.mark.parametrize("method", METHODS, ids=_name)
def test_every_method_has_a_conformance_test(method: MethodDescriptor) -> None:
    assert _called_in_conformance() & {method.name, _snake(method.name)}


# Those from 100 are named by clients, for what the server does not get to answer.
REASONS = [value for value in ErrorReason.values() if 0 < value < 100]


@pytest.mark.parametrize("reason", REASONS, ids=ErrorReason.Name)
def test_every_reason_has_the_status_that_its_comment_names(
    reason: ErrorReason.ValueType,
) -> None:
    assert STATUS_OF[reason].name == _status_in_comment(ErrorReason.Name(reason))


def _status_in_comment(name: str) -> str:
    """The word in front of the first colon of the comment right above this value."""
    proto = TESTS.parent / "protos/wfe/persistence/v1/error_reason.proto"
    lines = proto.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{name} ="))
    while lines[at - 1].strip().startswith("//"):
        at -= 1
    return lines[at].strip().removeprefix("// ").partition(":")[0]


def test_no_status_is_for_a_reason_that_is_never_sent() -> None:
    assert set(STATUS_OF) == set(REASONS)


@pytest.mark.parametrize("reason", REASONS, ids=ErrorReason.Name)
def test_every_reason_is_raised_somewhere(reason: ErrorReason.ValueType) -> None:
    sources = (TESTS.parent / "server").rglob("*.py")
    assert any(ErrorReason.Name(reason) in path.read_text() for path in sources)


def test_every_field_violation_is_found_somewhere() -> None:
    checks = Path(check.__file__).parent.glob("*.py")
    sources = "".join(path.read_text() for path in checks) + "".join(map(inspect.getsource, STORE))
    for reason in FieldViolationReason.values():
        assert not reason or FieldViolationReason.Name(reason) in sources


def test_names_on_the_wire_have_no_prefix() -> None:
    assert [reason_name(r) for r in REASONS if "REASON" in reason_name(r)] == []
    for violation in FieldViolationReason.values():
        assert "REASON" not in violation_name(violation)


def clashes(texts: Collection[str], names: Collection[str]) -> set[str]:
    """Fields that no Java class can have with another: for a text it has a method for its bytes."""
    return {name for name in texts if f"{name}_bytes" in names}


def test_messages_can_be_java_classes() -> None:
    assert clashes(["table", "other"], ["table", "table_bytes"]) == {"table"}
    files = sorted((TESTS.parent / "protos/wfe/persistence/v1").glob("*.proto"))
    modules = [import_module(f"wfe.persistence.v1.{file.stem}_pb2") for file in files]
    messages = [
        message
        for module in modules
        for message in module.DESCRIPTOR.message_types_by_name.values()
    ]
    assert len(messages) > 100
    for message in messages:
        texts = [field.name for field in message.fields if field.type == field.TYPE_STRING]
        assert clashes(texts, message.fields_by_name) == set(), message.full_name
