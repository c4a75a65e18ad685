"""The original crate's tables and statements, in both of its ages, written down as test data.

The first age has no name, root_workflow_id, last_heartbeat_at and definition_sequences. `{s}`
stands for the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import psycopg

TABLES = """
CREATE SCHEMA {s};
CREATE TABLE {s}.workflows (
    id TEXT PRIMARY KEY,
    {second_age_columns}
    definition_id TEXT NOT NULL,
    version INT NOT NULL,
    description TEXT,
    reference TEXT,
    status TEXT NOT NULL,
    data JSONB NOT NULL DEFAULT '{{}}',
    next_execution BIGINT,
    create_time TIMESTAMPTZ NOT NULL,
    complete_time TIMESTAMPTZ
    {second_age_heartbeat}
);
CREATE TABLE {s}.execution_pointers (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL REFERENCES {s}.workflows(id),
    step_id INT NOT NULL,
    active BOOLEAN NOT NULL DEFAULT TRUE,
    status TEXT NOT NULL,
    sleep_until TIMESTAMPTZ,
    persistence_data JSONB,
    start_time TIMESTAMPTZ,
    end_time TIMESTAMPTZ,
    event_name TEXT,
    event_key TEXT,
    event_published BOOLEAN DEFAULT FALSE,
    event_data JSONB,
    step_name TEXT,
    retry_count INT DEFAULT 0,
    children JSONB DEFAULT '[]',
    context_item JSONB,
    predecessor_id TEXT,
    outcome JSONB,
    scope JSONB DEFAULT '[]',
    extension_attributes JSONB DEFAULT '{{}}'
);
CREATE TABLE {s}.events (
    id TEXT PRIMARY KEY,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    event_data JSONB NOT NULL DEFAULT 'null',
    event_time TIMESTAMPTZ NOT NULL,
    is_processed BOOLEAN DEFAULT FALSE
);
CREATE TABLE {s}.event_subscriptions (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INT NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    subscribe_as_of TIMESTAMPTZ NOT NULL,
    subscription_data JSONB,
    external_token TEXT,
    external_worker_id TEXT,
    external_token_expiry TIMESTAMPTZ
);
CREATE TABLE {s}.execution_errors (
    id SERIAL PRIMARY KEY,
    error_time TIMESTAMPTZ NOT NULL,
    workflow_id TEXT NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE TABLE {s}.scheduled_commands (
    id SERIAL PRIMARY KEY,
    command_name TEXT NOT NULL,
    data TEXT NOT NULL,
    execute_time BIGINT NOT NULL,
    UNIQUE(command_name, data)
);
"""

INDEXES = """
CREATE INDEX IF NOT EXISTS {i}_workflows_next_execution ON {s}.workflows (next_execution);
CREATE INDEX IF NOT EXISTS {i}_workflows_status ON {s}.workflows (status);
CREATE INDEX IF NOT EXISTS {i}_events_name_key ON {s}.events (event_name, event_key);
CREATE INDEX IF NOT EXISTS {i}_events_is_processed ON {s}.events (is_processed);
CREATE INDEX IF NOT EXISTS {i}_events_event_time ON {s}.events (event_time);
CREATE INDEX IF NOT EXISTS {i}_subscriptions_name_key
    ON {s}.event_subscriptions (event_name, event_key);
CREATE INDEX IF NOT EXISTS {i}_subscriptions_workflow ON {s}.event_subscriptions (workflow_id);
CREATE INDEX IF NOT EXISTS {i}_scheduled_commands_execute_time
    ON {s}.scheduled_commands (execute_time);
"""

SEQUENCES = """
CREATE TABLE {s}.definition_sequences (
    definition_id TEXT PRIMARY KEY,
    next_num BIGINT NOT NULL
);
"""

DATA_TABLES = (
    "workflows",
    "execution_pointers",
    "events",
    "event_subscriptions",
    "execution_errors",
    "scheduled_commands",
)


class Original:
    """The original crate, as far as the database sees it: `age` 1 or 2, in a schema."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        age: int,
        schema: str = "wfc",
        prefix: str = "",
    ) -> None:
        self._connection = connection
        self.age = age
        self.schema = schema
        self.prefix = prefix

    def _named(self, sql: str) -> bytes:
        named = sql.replace("{s}.", f'"{self.schema}".{self.prefix}')
        return named.replace("{s}", f'"{self.schema}"').encode()

    def run(self, sql: str, *params: object) -> list[dict[str, Any]]:
        """Run one of the original's statements."""
        with self._connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            cursor.execute(self._named(sql), params or None)
            return cursor.fetchall() if cursor.description else []

    def create_tables(self) -> None:
        """Its schema, on an empty database."""
        second = self.age >= 2
        tables = TABLES.format(
            s="{s}",
            second_age_columns="name TEXT NOT NULL UNIQUE, root_workflow_id TEXT,"
            if second
            else "",
            second_age_heartbeat=", last_heartbeat_at TIMESTAMPTZ" if second else "",
        )
        self._connection.execute(self._named(tables))
        self.create_indexes()
        if second:
            self._connection.execute(self._named(SEQUENCES))

    def create_indexes(self) -> None:
        """Its indexes, where they are not there; on every start of a host of 1.11 for which its
        migrations are not recorded in the schema, so also on a store that we have made."""
        self._connection.execute(self._named(INDEXES.replace("{i}", self.prefix + "idx")))

    def create_workflow(self, id_: str, *, pointers: int = 0, data: object = None) -> None:
        """create_new_workflow."""
        header = {
            "id": id_,
            **({"name": id_, "root_workflow_id": None} if self.age >= 2 else {}),
            "definition_id": "order",
            "version": 1,
            "description": "d",
            "reference": None,
            "status": "Runnable",
            "data": json.dumps(data),
            "next_execution": 5,
            "create_time": "2026-01-01T00:00:00.123456Z",
            "complete_time": None,
        }
        self._insert("workflows", header)
        self._insert_pointers(id_, pointers, "Pending")

    def persist_workflow(self, id_: str, *, pointers: int, data: object, name: str = "") -> None:
        """persist_workflow: update the header, delete all pointers, insert them again."""
        second = "name=%s, root_workflow_id=%s, last_heartbeat_at=now()," if self.age >= 2 else ""
        names = (name, None) if self.age >= 2 else ()
        self.run(
            f"""UPDATE {{s}}.workflows SET {second} definition_id=%s, version=%s, description=%s,
                reference=%s, status=%s, data=%s, next_execution=%s, create_time=%s,
                complete_time=%s WHERE id=%s""",
            *names, "order", 1, "d", None, "Runnable", json.dumps(data), 6,
            "2026-01-01T00:00:00.123456Z", None, id_,
        )  # fmt: skip
        self.run("DELETE FROM {s}.execution_pointers WHERE workflow_id = %s", id_)
        self._insert_pointers(id_, pointers, "Running")

    def _insert_pointers(self, workflow_id: str, count: int, status: str) -> None:
        for i in range(count):
            self._insert(
                "execution_pointers",
                {
                    # Against the order of creation, so that an order by id would be noticed.
                    "id": f"{workflow_id}-{count - i}",
                    "workflow_id": workflow_id,
                    "step_id": i,
                    "active": True,
                    "status": status,
                    "sleep_until": None,
                    "persistence_data": None if i % 2 else "null",
                    "start_time": "2026-01-01T00:00:01Z",
                    "end_time": None,
                    "event_name": None,
                    "event_key": None,
                    "event_published": False,
                    "event_data": None,
                    "step_name": f"step {i}",
                    "retry_count": i,
                    "children": json.dumps([str(i)]),
                    "context_item": None,
                    "predecessor_id": None,
                    "outcome": json.dumps({"n": 2**60 + i}),
                    "scope": "[]",
                    "extension_attributes": json.dumps({"a": None}),
                },
            )

    def create_event(self, id_: str, *, processed: bool = False) -> None:
        """create_event."""
        self._insert(
            "events",
            {
                "id": id_,
                "event_name": "paid",
                "event_key": "42",
                "event_data": "null",
                "event_time": "2026-01-01T00:00:00Z",
                "is_processed": processed,
            },
        )

    def create_subscription(self, id_: str, *, token: str | None = None) -> None:
        """create_event_subscription."""
        self._insert(
            "event_subscriptions",
            {
                "id": id_,
                "workflow_id": "absent",
                "step_id": 3,
                "execution_pointer_id": "p",
                "event_name": "paid",
                "event_key": "42",
                "subscribe_as_of": "2026-01-01T00:00:00Z",
                "subscription_data": None,
                "external_token": token,
                "external_worker_id": token,
                "external_token_expiry": None,
            },
        )

    def schedule_command(self, data: str, execute_time: int) -> None:
        """schedule_command."""
        self.run(
            """INSERT INTO {s}.scheduled_commands (command_name, data, execute_time)
               VALUES (%s, %s, %s)
               ON CONFLICT (command_name, data) DO UPDATE SET execute_time = %s""",
            "ProcessWorkflow", data, execute_time, execute_time,
        )  # fmt: skip

    def persist_error(self, message: str) -> None:
        """persist_errors, one row."""
        self._insert(
            "execution_errors",
            {
                "error_time": "2026-01-01T00:00:00Z",
                "workflow_id": "w",
                "execution_pointer_id": "p",
                "message": message,
            },
        )

    def next_definition_sequence(self, definition_id: str) -> int:
        """next_definition_sequence."""
        [row] = self.run(
            """INSERT INTO {s}.definition_sequences (definition_id, next_num) VALUES (%s, 1)
               ON CONFLICT (definition_id) DO UPDATE
               SET next_num = {s}.definition_sequences.next_num + 1 RETURNING next_num""",
            definition_id,
        )
        number: int = row["next_num"]
        return number

    def fill(self) -> None:
        """Something in every table."""
        for i in range(3):
            self.create_workflow(f"w{i}", pointers=4, data={"n": i, "big": 2**63})
        self.persist_workflow("w1", pointers=6, data=[1, None], name="w1")
        self.create_event("e0")
        self.create_event("e1", processed=True)
        self.create_subscription("s0")
        self.create_subscription("s1", token="t")
        for i in range(3):
            self.schedule_command(f"c{i}", i)
        self.schedule_command("c0", 100)
        self.persist_error("first")
        self.persist_error("second")
        if self.age >= 2:
            self.next_definition_sequence("order")

    def rows(self, columns_of: dict[str, list[str]] | None = None) -> dict[str, list[Any]]:
        """All rows of all tables, in the order of their keys; only the given columns."""
        found = {}
        for table in DATA_TABLES:
            columns = ", ".join(columns_of[table]) if columns_of else "*"
            found[table] = self.run(f"SELECT {columns} FROM {{s}}.{table} ORDER BY id")
        return found

    def _insert(self, table: str, row: Mapping[str, object]) -> None:
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        self.run(f"INSERT INTO {{s}}.{table} ({names}) VALUES ({marks})", *row.values())
