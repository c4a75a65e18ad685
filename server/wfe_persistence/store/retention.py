"""Retention: what servers delete by themselves, as the policy of a namespace says.

A policy is rules, one row each. A batch is one statement: it locks the row of its rule, deletes as
a purge does (see `purge.py`), and notes in the row how far it has come and when the next batch may
be. So one server at a time works on a rule, all of them together are no faster than the budget of
one, another one goes on where one was killed, and a rule that has been replaced deletes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from json import dumps
from typing import Final

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1 import store_pb2 as pb
from wfe_persistence.store.create_parts import Besides
from wfe_persistence.store.paging import TIME, Cursor
from wfe_persistence.store.purge import (
    BATCH_ROOTS,
    BATCH_ROWS,
    COUNT_DOOMED_EVENTS,
    Purged,
    count_workflows_statement,
    purge_events_statement,
    purge_workflows_statement,
    purged_events,
    purged_workflows,
)
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    boolean,
    integer,
    pg_micros_param,
    read_int8,
    read_text,
    read_time,
    text,
    text_array,
)
from wfe_persistence.store.tables import Store

# Of workflows: their statuses, as they are stored.
_COMPLETE: Final = "Complete"
_TERMINATED: Final = "Terminated"
_EVENT: Final = "Event"
_ERROR: Final = "Error"
_COMMAND: Final = "Command"

_StoredRule = tuple[str, str, int | None]
"""Its kind, its definition, and its age in µs; None: for ever."""

RULES_TABLE: Final = "retention_rules"

FORGET_RETENTION_RULES = "DELETE FROM wfc.retention_rules"

# $1: arrays of kind, definition and age. A concurrent one inserts the same key, which is retried.
SET_RETENTION_POLICY = """
INSERT INTO wfc.retention_rules (kind, definition_id, age_us)
SELECT r ->> 0, r ->> 1, (r ->> 2)::bigint FROM jsonb_array_elements($1::jsonb) r
ORDER BY 1, 2
"""


async def set_retention_policy(store: Store, policy: pb.RetentionPolicy) -> None:
    """Replace the policy, after the batches in progress have ended."""
    await store.write_all(
        (FORGET_RETENTION_RULES, ()), (SET_RETENTION_POLICY, (rules_document(policy),))
    )


def rules_document(policy: pb.RetentionPolicy) -> bytes:
    """A policy as the parameter of SET_RETENTION_POLICY."""
    return dumps([[kind, definition, age] for kind, definition, age in _rules_of(policy)]).encode()


def in_order(policy: pb.RetentionPolicy) -> pb.RetentionPolicy:
    """A policy as it is read once it is stored: ages in microseconds, rules by definition."""
    rows = sorted(_rules_of(policy), key=lambda rule: (rule[1].encode(), rule[0]))
    return _policy_of(rows)


def _rules_of(policy: pb.RetentionPolicy) -> Iterator[_StoredRule]:
    """A rule of each kind and definition, with its age in µs; None: for ever."""
    for w in policy.workflows:
        # Also for ever: no other rule is for this definition then.
        yield _COMPLETE, w.workflow_definition_id, _age(w, "complete_age")
        yield _TERMINATED, w.workflow_definition_id, _age(w, "terminated_age")
    for kind, field in _FIELDS.items():
        age = _age(policy, field)
        if age is not None:
            yield kind, "", age


_FIELDS: Final = {
    _EVENT: "processed_event_age",
    _ERROR: "error_age",
    _COMMAND: "overdue_command_age",
}


def _age(message: pb.WorkflowRetention | pb.RetentionPolicy, field: str) -> int | None:
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    age: Duration = getattr(message, field)
    return age.seconds * 1_000_000 + age.nanos // 1000


GET_RETENTION_POLICY = """
SELECT kind, definition_id, age_us, set_time, deleted_rows, passed_time
FROM wfc.retention_rules ORDER BY definition_id, kind
"""


async def get_retention_policy(store: Store) -> pb.GetRetentionPolicyResponse:
    """The policy, and what it has done."""
    return read_policy(await store.read(GET_RETENTION_POLICY))


def read_policy(rows: PGresult) -> pb.GetRetentionPolicyResponse:
    """The policy out of the rows of GET_RETENTION_POLICY."""
    get = rows.get_value
    answer = pb.GetRetentionPolicyResponse()
    found: list[_StoredRule] = []
    passed: list[bytes | None] = []
    for i in range(rows.ntuples):
        age = get(i, 2)
        found.append(
            (read_text(get(i, 0)), read_text(get(i, 1)), None if age is None else read_int8(age))
        )
        if age is not None:
            passed.append(get(i, 5))
        read_time(get(i, 3), answer.set_time)
        answer.deleted_rows += read_int8(get(i, 4))
    answer.policy.CopyFrom(_policy_of(found))
    if passed and None not in passed:
        read_time(min(passed, key=read_int8), answer.complete_time)
    return answer


def _policy_of(rules: Iterable[_StoredRule]) -> pb.RetentionPolicy:
    policy = pb.RetentionPolicy()
    of_definition: dict[str, pb.WorkflowRetention] = {}
    for kind, definition, micros in rules:
        if kind in _FIELDS:
            age = getattr(policy, _FIELDS[kind])
        else:
            if definition not in of_definition:
                of_definition[definition] = policy.workflows.add(workflow_definition_id=definition)
            rule = of_definition[definition]
            age = rule.complete_age if kind == _COMPLETE else rule.terminated_age
        if micros is not None:
            age.FromMicroseconds(micros)
    return policy


RUN_RETENTION = """
UPDATE wfc.retention_rules SET next_time = now(), after_time = NULL, after_id = NULL
"""


async def run_retention(store: Store) -> None:
    """Begin a pass of every rule now."""
    await store.write(RUN_RETENTION)


# ----- the rules that delete something -----

# $1: only those of which a batch may be deleted now.
RETENTION_RULES = """
SELECT id::text, kind, definition_id, now() - age_us * interval '1 microsecond',
    after_time, after_id,
    ARRAY (SELECT DISTINCT o.definition_id FROM wfc.retention_rules o
        WHERE o.definition_id <> '' AND r.definition_id = '')::text
FROM wfc.retention_rules r
WHERE age_us IS NOT NULL AND (NOT $1::boolean OR next_time <= now())
ORDER BY next_time, kind, definition_id
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it stood when it was read."""

    id: str
    kind: str
    definition: str
    before: int
    """What is older goes: µs, as PostgreSQL has them."""
    after: Cursor | None
    """How far the present pass has come; None: it begins."""
    others: bytes
    """The definitions that have rules of their own, as a parameter."""


async def rules(store: Store, *, due: bool) -> list[Rule]:
    """The rules that delete something; `due`: those of which a batch may be deleted now."""
    rows = await store.read(RETENTION_RULES, boolean(due))
    found = []
    for i in range(rows.ntuples):
        get = rows.get_value
        last, others = get(i, 5), get(i, 6)
        after = None if last is None else (read_int8(get(i, 4)), read_text(last))
        id_, kind, definition = (read_text(get(i, column)) for column in range(3))
        assert others is not None
        found.append(Rule(id_, kind, definition, read_int8(get(i, 3)), after, others))
    return found


# ----- batches -----


def _besides(rule: int, *, after_id: str, rows: str, is_over: str, last: str) -> Besides:
    """What a batch does besides deleting. Parameters from number `rule` on: the id of the rule, the
    seconds until the next pass, the seconds for a row. `last`: where the cursor comes from."""
    return Besides(
        first=f"""turn AS MATERIALIZED (
    SELECT FROM wfc.retention_rules
    WHERE id = ${rule}::uuid AND next_time <= now()
        AND after_id IS NOT DISTINCT FROM {after_id}::text
    FOR UPDATE SKIP LOCKED
), """,
        condition="EXISTS (SELECT FROM turn)",
        then=f""", noted AS (
    UPDATE wfc.retention_rules SET
        (after_time, after_id) = (SELECT l.time, l.id FROM ({last}) l WHERE NOT b.is_over),
        next_time = now() + interval '1 second' * CASE WHEN b.is_over THEN ${rule + 1}::float8
            ELSE b.rows * ${rule + 2}::float8 END,
        passed_time = CASE WHEN b.is_over THEN now() ELSE passed_time END,
        deleted_rows = deleted_rows + b.rows
    FROM (SELECT {rows} AS rows, {is_over} AS is_over) b
    WHERE id = ${rule}::uuid AND EXISTS (SELECT FROM turn)
)""",
    )


_DEFINITIONS: Final = (
    "($5::text IS NULL OR {w}.definition_id = $5) AND {w}.definition_id <> ALL ($8::text[])"
)
_DELETED: Final = ("workflows", "pointers", "subscriptions", "errors", "events")

# As PURGE_WORKFLOWS; $8 the definitions of other rules, from $9 on those of `_besides`.
EXPIRE_WORKFLOWS = purge_workflows_statement(
    _DEFINITIONS,
    _besides(
        9,
        after_id="$4",
        rows=" + ".join(f"(SELECT count(*) FROM {part})" for part in _DELETED),
        is_over="""(SELECT count(*) FROM roots) < $6
        AND (SELECT count(*) FROM roots) = (SELECT count(*) FROM considered)""",
        last="SELECT ended AS time, id FROM considered ORDER BY ended DESC, id DESC LIMIT 1",
    ),
)
COUNT_EXPIRED_WORKFLOWS = count_workflows_statement(_DEFINITIONS)

# As PURGE_EVENTS; from $7 on those of `_besides`.
EXPIRE_EVENTS = purge_events_statement(
    _besides(
        7,
        after_id="$3",
        rows="(SELECT count(*) FROM deleted)",
        is_over="(SELECT count(*) FROM doomed) < $6",
        last="SELECT event_time AS time, id FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1",
    )
)

_OVERDUE: Final = """execute_time < floor(extract(epoch FROM $1::timestamptz) * 1000)::bigint
        AND (lease_expiry IS NULL OR lease_expiry <= now())"""


def _expire(table: str, condition: str, order: str) -> str:
    """$1: older than. $2: how many rows. From $3 on those of `_besides`."""
    besides = _besides(
        3,
        after_id="NULL",
        rows="(SELECT count(*) FROM deleted)",
        is_over="(SELECT count(*) FROM doomed) < $2",
        last="SELECT NULL::timestamptz AS time, NULL AS id",
    )
    return f"""
WITH {besides.first}doomed AS MATERIALIZED (
    SELECT id FROM wfc.{table}
    WHERE {condition}
        AND {besides.condition}
    ORDER BY {order}
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM wfc.{table} WHERE id = ANY (ARRAY (SELECT id FROM doomed)) RETURNING 1
){besides.then}
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM doomed)
"""


def _count(table: str, condition: str) -> str:
    return f"""
SELECT count(*) FROM (SELECT FROM wfc.{table} WHERE {condition} LIMIT $2) e
"""


EXPIRE_ERRORS = _expire("execution_errors", "error_time < $1::timestamptz", "error_time")
COUNT_EXPIRED_ERRORS = _count("execution_errors", "error_time < $1::timestamptz")
EXPIRE_COMMANDS = _expire("scheduled_commands", _OVERDUE, "execute_time, id")
COUNT_OVERDUE_COMMANDS = _count("scheduled_commands", _OVERDUE)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one statement has deleted, or counted."""

    counts: dict[str, int]
    """Rows by the fields of RetentionCounts."""
    next: Cursor | None
    """Where the next batch begins, if there is one."""
    is_last: bool
    """Nothing is left that is old enough; or it was not this server's turn."""

    @property
    def rows(self) -> int:
        """All rows together."""
        return sum(self.counts.values())


_WORKFLOW_COUNTS: Final = ("workflows", "execution_pointers", "subscriptions", "errors", "events")

DELETED_KINDS: Final = (*_WORKFLOW_COUNTS, "commands")
"""The kinds of rows that policies delete, as they are counted."""


async def batch(store: Store, rule: Rule, most: int, *turn: Param) -> Batch:
    """Delete about so many rows at most, or count them. `turn`: the last parameters of a statement
    that deletes; without them, it counts."""
    before = pg_micros_param(rule.before)
    if rule.kind == _ERROR:
        sql = EXPIRE_ERRORS if turn else COUNT_EXPIRED_ERRORS
        return await _without_cursor(store, sql, "errors", before, most, turn)
    if rule.kind == _COMMAND:
        sql = EXPIRE_COMMANDS if turn else COUNT_OVERDUE_COMMANDS
        return await _without_cursor(store, sql, "commands", before, most, turn)
    most = min(most, BATCH_ROWS)
    if rule.kind == _EVENT:
        row = await store.write_once(
            EXPIRE_EVENTS if turn else COUNT_DOOMED_EVENTS,
            before, *TIME.params(rule.after), boolean(False), None, integer(most), *turn,
            jit=False,
        )  # fmt: skip
        return _batch(("events",), purged_events(row, most))
    row = await store.write_once(
        EXPIRE_WORKFLOWS if turn else COUNT_EXPIRED_WORKFLOWS,
        text_array([rule.kind]), before, *TIME.params(rule.after),
        text(rule.definition) if rule.definition else None,
        integer(BATCH_ROOTS), integer(most), rule.others, *turn,
        jit=False,
    )  # fmt: skip
    return _batch(_WORKFLOW_COUNTS, purged_workflows(row))


def _batch(fields: Sequence[str], purged: Purged) -> Batch:
    counts = dict(zip(fields, purged.counts, strict=True))
    return Batch(counts, purged.last, purged.is_over)


async def _without_cursor(
    store: Store, sql: str, field: str, before: bytes, most: int, turn: Sequence[Param]
) -> Batch:
    if turn:
        most = min(most, BATCH_ROWS)
    row = await store.write_once(sql, before, integer(most), *turn, jit=False)
    count = read_int8(row.get_value(0, 0))
    return Batch({field: count}, None, is_last=count < most)


async def count_expired(store: Store, most: int) -> pb.RetentionCounts:
    """What the policy lets go now, until about so many rows have been counted."""
    counts = pb.RetentionCounts()
    for rule in await rules(store, due=False):
        while True:
            if most <= 0:
                counts.is_partial = True
                return counts
            counted = await batch(store, rule, most)
            for field, rows in counted.counts.items():
                setattr(counts, field, getattr(counts, field) + rows)
            most -= counted.rows
            if counted.is_last or counted.next is None:
                break
            rule = replace(rule, after=counted.next)
    return counts
