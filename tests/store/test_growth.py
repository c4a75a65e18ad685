"""What is rare, old, or behind what is not asked for is found without reading all the rest, in a
store that is as skewed as one that has grown for long."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import psycopg
import pytest

from tests.support import growth
from wfe_persistence.store import error_log, workflow_list
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

WORKFLOWS: Final = 50_000


class Bound(NamedTuple):
    """How much a statement may read."""

    rows: int
    pages: int


PAGE: Final = Bound(rows=2 * growth.PAGE, pages=240)
"""Of a page of a list: the rows of it, and what was merged from more than one place."""
PURGE: Final = Bound(rows=4000, pages=5000)
"""Of a batch: 100 trees with their pointers, and twenty times as many that have another status."""
FEW: Final = Bound(rows=2 * 1000, pages=300)
"""Of what is looked up and sorted: counted, and read."""

BOUNDS: Final[Mapping[str, Bound]] = {
    "PurgeWorkflows": PURGE,
    "PurgeWorkflows, Complete": PURGE,
    "PurgeWorkflows, Terminated": PURGE,
    "PurgeWorkflows, a common definition": PURGE,
    "PurgeWorkflows, a rare definition": PURGE,
    "ListWorkflows": PAGE,
    "ListWorkflows, completed lately": FEW,
    "ListWorkflows, completed long ago": FEW,
    "ListWorkflows, completed in an old window": FEW,
    "ListWorkflows, completed in an old window, Complete": FEW,
    "ListWorkflows, completed in a wide old window": Bound(rows=2 * WORKFLOWS // 10, pages=400),
    # It is first counted that they are not few, and looked whether they are near.
    "ListWorkflows, completed in the older half": Bound(rows=22_000, pages=1000),
    "ListWorkflows, an old version": FEW,
    "ListWorkflows, no such version": Bound(0, 10),
    "ListWorkflows, an old version of a definition": FEW,
    "ListWorkflows, an old definition": FEW,
    "ListWorkflows, a rare definition": FEW,
    "ListWorkflows, a rare definition, three statuses": FEW,
    "ListWorkflows, two rare statuses": PAGE,
    "ListWorkflows, a rare status of a common definition": Bound(rows=3000, pages=300),
    "ListWorkflows, a prefix": FEW,
    "ListWorkflows, a prefix of old names": FEW,
    "ListWorkflows, a deep page of a time window": PAGE,
    "ListWorkflows, a deep page, oldest first": PAGE,
    "ListEvents": PAGE,
    "ListEvents, a name only in old rows": PAGE,
    "ListEvents, no such name": Bound(0, 10),
    "ListEvents, a deep page of a time window": Bound(growth.PAGE, 10),
    "ListEvents, a deep page, oldest first": Bound(growth.PAGE, 10),
    "ListEvents, a deep page of a name": Bound(rows=2 * growth.PAGE, pages=10),
    "PurgeEvents": Bound(rows=4000, pages=8000),
    "PurgeEvents, a name only in old rows, the last batch": Bound(rows=100, pages=100),
    "PurgeEvents, a name that is common": Bound(rows=8000, pages=8000),
    "ListSubscriptions, open, of a name that is mostly held": PAGE,
    "ListSubscriptions, open, of a name that is open": PAGE,
    "ListSubscriptions, of a name": PAGE,
    "GetFirstOpenSubscription, behind held ones": Bound(rows=1, pages=10),
    "GetSubscriptions, behind held ones": Bound(growth.PAGE, 10),
    "ClaimCommands, behind leased ones": Bound(rows=20, pages=300),
    "LookAtCommands, behind leased ones": Bound(growth.PAGE, 20),
    "ListErrors": Bound(growth.PAGE, 10),
    # It is first looked whether they begin right here.
    "ListErrors, the last ones": Bound(12 * growth.PAGE, 30),
    "ListErrors, an old window": Bound(12 * growth.PAGE, 50),
    "ListErrors, a wide old window": Bound(11 * growth.PAGE + 2000, 60),
    "ListErrors, the first ones": Bound(11 * growth.PAGE, 50),
    "GetRunnableInstances": Bound(growth.PAGE, 120),
}


@pytest.fixture(scope="module")
def filled(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a store of its own, which is filled."""
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE growth")
        url = postgres_url.replace("/postgres?", "/growth?")
        asyncio.run(migrate(ConnectionSource(url), Schema()))
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            for _ in growth.fill(connection, WORKFLOWS):
                pass
            yield connection
        admin.execute("DROP DATABASE growth WITH (FORCE)")


@pytest.fixture(scope="module")
def cases(filled: psycopg.Connection[Any]) -> Mapping[str, growth.Case]:
    found = growth.cases(filled, WORKFLOWS)
    assert list(found) == list(BOUNDS)
    return found


@pytest.mark.parametrize("what", BOUNDS)
def test_it_reads_little(
    filled: psycopg.Connection[Any], cases: Mapping[str, growth.Case], what: str
) -> None:
    run = growth.explain(filled, cases[what])
    bound = BOUNDS[what]
    assert run.rows_read <= bound.rows
    assert run.buffers <= bound.pages


async def test_a_batch_is_not_compiled(store: Store) -> None:
    show = "SELECT current_setting('jit')"
    for jit, shown in ((False, b"off"), (True, b"on"), (False, b"off")):
        assert (await store.write_once(show, jit=jit)).get_value(0, 0) == shown


def as_if_large(sql: str, *, sorted_: int = 10_000) -> str:
    """ListWorkflows with what it takes for few, for near, and for too many to be sorted, as if the
    store were a hundred times as large."""
    for most, fewer in (
        (workflow_list._MOST_FEW, 200),
        (workflow_list._FIRST_ONES, 500),
        (workflow_list._MOST_SORTED, sorted_),
    ):
        sql, places = re.subn(rf"\b{most}\b", str(fewer), sql)
        assert places
    return sql


@pytest.mark.parametrize("order", [growth.NEWEST, growth.OLDEST], ids=["old names", "ended late"])
def test_many_of_which_none_is_near_are_sorted(filled: psycopg.Connection[Any], order: Any) -> None:
    params: list[object] = [None] * 18
    if order == growth.NEWEST:
        found, params[4] = WORKFLOWS // 50, "old%"
    else:
        found, params[8] = WORKFLOWS // 10, growth.at(filled, WORKFLOWS, 0.9)
    params[17] = growth.PAGE
    sql = workflow_list.LIST_WORKFLOWS[order, growth.HEADER]
    sorted_ = growth.explain(filled, growth.Case(as_if_large(sql), params))
    # What they are, counted twice; and the first of each status, counted too.
    most = 3 * found + 8 * 500
    assert sorted_.rows_read <= most
    merged = growth.explain(filled, growth.Case(as_if_large(sql, sorted_=10), params))
    assert merged.rows_read > sorted_.rows_read


CONDITIONS: Final[Mapping[str, tuple[int, str]]] = {
    "statuses": (0, "status = ANY (%s::text[])"),
    "definition": (1, "definition_id = %s"),
    "version": (2, "version = %s"),
    "name": (4, "name LIKE %s"),
    "created_from": (6, "create_time >= %s"),
    "created_before": (7, "create_time < %s"),
    "completed_from": (8, "complete_time >= %s"),
    "completed_before": (9, "complete_time < %s"),
}
"""Of ListWorkflows: the place of a parameter, and what it means."""

# Shares of the store instead of times. Some find few workflows, others many, or none.
FILTERS: Final[Mapping[str, Mapping[str, object]]] = {
    "none": {},
    "an old window of completion": {"completed_from": 0.05, "completed_before": 0.06},
    "the older half by completion": {"completed_before": 0.5},
    "the newer half by completion": {"completed_from": 0.5},
    "a wide window of completion": {"completed_from": 0.2, "completed_before": 0.8},
    "that of one status": {
        "completed_from": 0.2, "completed_before": 0.8, "statuses": "{Terminated}"
    },
    "that of a definition": {
        "completed_from": 0.2, "completed_before": 0.8, "definition": "rare"
    },
    "an old version": {"version": 1},
    "a common version": {"version": 2},
    "a common version of two statuses": {"version": 2, "statuses": "{Runnable,Suspended}"},
    "a rare definition": {"definition": "rare"},
    "a common definition": {"definition": "common", "statuses": "{Suspended,Terminated}"},
    "a prefix of few": {"name": "name77%"},
    "a prefix of all": {"name": "n%", "created_before": 0.5},
    "a window": {"created_from": 0.3, "created_before": 0.301},
    "nothing": {"definition": "rare", "version": 3},
}  # fmt: skip


@pytest.mark.parametrize("order", [growth.NEWEST, growth.OLDEST], ids=["newest", "oldest"])
@pytest.mark.parametrize("what", FILTERS)
def test_workflows_are_listed_whichever_way_they_are_found(
    filled: psycopg.Connection[Any], what: str, order: Any
) -> None:
    params: list[object] = [None] * 15
    conditions, values = ["TRUE"], []
    for name, value in FILTERS[what].items():
        place, condition = CONDITIONS[name]
        if isinstance(value, float):
            value = growth.at(filled, WORKFLOWS, value)
        params[place] = value
        conditions.append(condition)
        values.append(value)
    direction = "DESC" if order == growth.NEWEST else "ASC"
    rows = filled.execute(
        f"SELECT id, create_time FROM wfc.workflows WHERE {' AND '.join(conditions)} "
        f"ORDER BY create_time {direction}, id {direction} LIMIT 250".encode(),
        values,
    ).fetchall()
    expected = [(id_, str(time)) for id_, time in rows]
    sql = workflow_list.LIST_WORKFLOWS[order, growth.HEADER]
    for way in (sql, as_if_large(sql), as_if_large(sql, sorted_=10)):
        found: list[tuple[str, str]] = []
        cursor: list[object] = [None, None]
        while len(found) < 250:
            case = growth.Case(way, [*params, *cursor, 100])
            page = growth.run(filled, case, "id", "create_time")
            found += page
            if len(page) < 100:
                break
            cursor = [found[-1][1], found[-1][0]]
        assert found[:250] == expected


@pytest.mark.parametrize(
    "window",
    [
        (None, None),
        (0.05, 0.06),
        (0.05, 0.5),
        (None, 0.9),
        (0.9, None),
        (0.999, None),
        (0.0, 0.001),
    ],
)
def test_errors_are_listed_whichever_way_they_are_found(
    filled: psycopg.Connection[Any], window: tuple[float | None, float | None]
) -> None:
    times = [
        None if share is None else growth.at(filled, WORKFLOWS, 1 - (1 - share) / 5)
        for share in window
    ]
    expected = filled.execute(
        b"SELECT id FROM wfc.execution_errors WHERE (%s::timestamptz IS NULL OR error_time >= %s)"
        b" AND (%s::timestamptz IS NULL OR error_time < %s) ORDER BY id DESC LIMIT 250",
        [times[0], times[0], times[1], times[1]],
    ).fetchall()
    # Also as if the window had too many to be sorted.
    few = f"<= {error_log._MOST_FEW}"
    assert few in error_log.LIST_ERRORS
    for sql in (error_log.LIST_ERRORS, error_log.LIST_ERRORS.replace(few, "<= 10")):
        found: list[tuple[int]] = []
        last: object = None
        while len(found) < 250:
            page = growth.run(filled, growth.Case(sql, [None, *times, last, 100]), "id")
            found += page
            if len(page) < 100:
                break
            last = found[-1][0]
        assert found[:250] == expected
