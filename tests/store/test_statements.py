"""Every SQL statement of the store is rendered in statements/, as it is sent for the schema `wfc`.

A file can be read, pasted into psql and explained: `EXPLAIN (GENERIC_PLAN) …;` (PostgreSQL 16), or
`PREPARE s AS …; EXPLAIN EXECUTE s (…);`. It is named after the constant, and for a dictionary of
statements also after the key: `LIST_WORKFLOWS.newest_first.full.sql`.

`WFE_RENEW=1 ./run test tests/store/test_statements.py` renders them again.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import wfe_persistence.store
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import WorkflowView
from wfe_persistence.store import commit, workflow_list
from wfe_persistence.store.tables import Store

STATEMENTS = Path(__file__).parent / "statements"

STARTS = re.compile(
    r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE|TRUNCATE|LOCK|CREATE|ALTER|DROP|COMMENT|SET|DO)\b"
)

# The enums that the keys of a dictionary of statements are made of.
KEYS: dict[str, tuple[Any, ...]] = {
    "GET_WORKFLOW_INSTANCE": (WorkflowView,),
    "GET_WORKFLOW_INSTANCE_BY_NAME": (WorkflowView,),
    "GET_WORKFLOW_INSTANCES": (WorkflowView,),
    "LIST_WORKFLOWS": (ListOrder, WorkflowView),
    "LIST_EVENTS": (ListOrder,),
}


def constants() -> Iterator[tuple[str, Any]]:
    """The public constants that each module of the store defines."""
    package = wfe_persistence.store
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        assert module.__file__
        for node in ast.parse(Path(module.__file__).read_text()).body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            for target in targets:
                if isinstance(target, ast.Name) and re.fullmatch(r"[A-Z][A-Z0-9_]*", target.id):
                    yield target.id, getattr(module, target.id)


def key_name(constant: str, key: Any) -> str:
    """`newest_first.full` for a key out of a list order and a view; a text is its own name."""
    if isinstance(key, str):
        return key
    parts = key if isinstance(key, tuple) else (key,)
    names = []
    for enum, value in zip(KEYS[constant], parts, strict=True):
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper()
        names.append(enum.Name(value).removeprefix(f"{prefix}_").lower())
    return ".".join(names)


def statements() -> dict[str, str]:
    """Every statement by its file name."""
    found: dict[str, str] = {}

    def add(name: str, sql: str) -> None:
        assert name not in found, f"two constants are named {name}"
        found[name] = sql

    for constant, value in constants():
        if isinstance(value, str) and STARTS.match(value):
            add(f"{constant}.sql", value)
        elif isinstance(value, dict):
            for key, sql in value.items():
                if isinstance(sql, str) and STARTS.match(sql):
                    add(f"{constant}.{key_name(constant, key)}.sql", sql)
    return found


def as_file(sql: str) -> str:
    """The content of its file. Migrations have `%s` for parameters, which psycopg numbers."""
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", sql.strip()) + ";\n"


def test_each_statement_has_its_file() -> None:
    rendered = {name: as_file(sql) for name, sql in statements().items()}
    if os.environ.get("WFE_RENEW"):
        STATEMENTS.mkdir(exist_ok=True)
        for path in STATEMENTS.glob("*.sql"):
            path.unlink()
        for name, sql in rendered.items():
            (STATEMENTS / name).write_text(sql)
    stored = {path.name: path.read_text() for path in STATEMENTS.iterdir()}
    assert stored == rendered, "WFE_RENEW=1 ./run test tests/store/test_statements.py writes them"


def test_statements_of_all_kinds_are_found() -> None:
    """Guards against a search that no longer finds anything."""
    found = statements()
    assert found["COMMIT_WORKFLOW_PATCH.sql"] == commit.COMMIT_WORKFLOW_PATCH
    view, order = WorkflowView.WORKFLOW_VIEW_ACTIVE, ListOrder.LIST_ORDER_NEWEST_FIRST
    assert (
        found["LIST_WORKFLOWS.newest_first.active.sql"] == workflow_list.LIST_WORKFLOWS[order, view]
    )
    assert len(found) > 50


@pytest.mark.usefixtures("store")
async def test_each_file_is_accepted_by_postgresql(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        # This column comes with the first store that is taken back.
        connection.execute((STATEMENTS / "ADD_HELD_TIME.sql").read_bytes())
        for path in sorted(STATEMENTS.iterdir()):
            result = connection.pgconn.prepare(b"", path.read_bytes())
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, (
                f"{path.name}: {result.error_message.decode()}"
            )


async def test_the_files_are_what_is_sent(store: Store) -> None:
    """Binding to the default schema only quotes names."""
    sent = store.schema.bind(commit.PERSIST_WORKFLOW).sql.decode()
    stored = (STATEMENTS / "PERSIST_WORKFLOW.sql").read_text()
    assert sent.replace('"', "").strip() == stored.removesuffix(";\n")
