"""The migrations of this release, as their files have them.

A migration is `NNNN_name.sql`, which is applied in one transaction. Besides there may be

- `NNNN_name.down.sql`, which takes it back: see `take_back.py`.
- `NNNN_name.online.sql`: indexes of a released migration, whose file can't be changed any more,
  that may be built before it without holding anybody up.

An index that a file creates CONCURRENTLY is built before the transaction of its migration where the
table is large, otherwise in it: see `online.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from wfe_persistence.store.schema import Schema

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_OLDEST_SERVER: Final = re.compile(r"^-- oldest server: (\d+)$", re.MULTILINE)
_NOT_POSSIBLE: Final = re.compile(r"^-- not possible: (.+)$", re.MULTILINE)
_LOSES: Final = re.compile(r"^-- loses ([^:]+): (SELECT .+)$", re.MULTILINE)
_INDEX: Final = re.compile(
    r"^CREATE (UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?\{prefix\}(\w+)\s+ON wfc\.(\w+)\s+"
    r"([^;]+);\n?",
    re.MULTILINE,
)

# Those before it were released without a statement.
_FIRST_THAT_STATES: Final = 5

PACKAGED: Final = resources.files("wfe_persistence.store").joinpath("migrations")
"""The directory of this release's migrations."""


@dataclass(frozen=True, slots=True)
class Index:
    """An index that may be built without holding anybody up."""

    name: str
    """Without the table prefix."""
    table: str
    definition: str
    """What follows the table, as PostgreSQL shows it: `USING btree (workflow_id, ordinal)`."""
    unique: bool = False

    def create(self, schema: Schema, *, concurrently: bool) -> str:
        """The statement that builds it."""
        kind = "UNIQUE INDEX" if self.unique else "INDEX"
        how = " CONCURRENTLY" if concurrently else ""
        name = schema.table_prefix + self.name
        return schema.qualify(f"CREATE {kind}{how} {name} ON wfc.{self.table} {self.definition}")

    def drop(self, schema: Schema, *, concurrently: bool) -> str:
        """The statement that drops it, if it is there."""
        how = " CONCURRENTLY" if concurrently else ""
        return schema.qualify(f"DROP INDEX{how} IF EXISTS wfc.{self.name}")


@dataclass(frozen=True, slots=True)
class Loss:
    """What taking back a migration would lose."""

    what: str
    """Of which there are so many: `rules of retention`."""
    count: str
    """A statement that counts them."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration, as its files have it."""

    version: int
    name: str
    template: str
    online: str = ""
    """The file of indexes that may be built before."""
    down: str = "-- not possible: it has no script that takes it back\n"
    """The file that takes it back."""

    @property
    def checksum(self) -> str:
        """The checksum of the file before it is bound to a schema: the same for every store."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def oldest_server(self) -> int:
        """The schema version of the oldest server that may go on using the store."""
        stated = _OLDEST_SERVER.search(self.template)
        if stated is None:
            assert self.version < _FIRST_THAT_STATES, (
                f"{self.name} does not state its oldest server"
            )
            return self.version
        return int(stated[1])

    @property
    def indexes(self) -> tuple[Index, ...]:
        """Those that may be built before it, without holding anybody up."""
        return tuple(
            index for index, concurrently in _indexes(self.template + self.online) if concurrently
        )

    @property
    def created_indexes(self) -> tuple[Index, ...]:
        """All that it creates."""
        return tuple(index for index, _ in _indexes(self.template))

    def sql(self, schema: Schema, *, built: Collection[str] = ()) -> str:
        """The SQL for this schema, which may be run in a transaction; without the indexes that are
        `built` (their names, without prefix)."""

        def create(match: re.Match[str]) -> str:
            return "" if match[3] in built else match[0].replace(" CONCURRENTLY", "", 1)

        return _bound(_INDEX.sub(create, self.template), schema)

    def sql_online(self, schema: Schema) -> str:
        """The SQL for this schema, which must not be run in a transaction: it builds indexes first
        and CONCURRENTLY."""
        first = [index.create(schema, concurrently=True) + ";\n" for index in self.indexes]
        return "".join(first) + self.sql(schema, built={index.name for index in self.indexes})

    @property
    def irreversible(self) -> str:
        """Why it can't be taken back; empty: it can."""
        found = _NOT_POSSIBLE.search(self.down)
        return found[1] if found else ""

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What would be lost if it were taken back."""
        return tuple(Loss(what, count) for what, count in _LOSES.findall(self.down))

    @property
    def lost_tables(self) -> tuple[str, ...]:
        """The tables whose rows would be lost, or some of their columns."""
        counts = " ".join(loss.count for loss in self.losses)
        return tuple(dict.fromkeys(re.findall(r"FROM wfc\.(\w+)", counts)))

    def sql_down(self, schema: Schema) -> str:
        """The SQL that takes it back, for this schema."""
        return _bound(self.down, schema)


def _indexes(text: str) -> list[tuple[Index, bool]]:
    """The indexes that a file creates, and whether CONCURRENTLY."""
    return [
        (Index(name, table, " ".join(rest.split()), bool(unique)), bool(concurrently))
        for unique, concurrently, name, table, rest in _INDEX.findall(text)
    ]


def _bound(template: str, schema: Schema) -> str:
    return schema.qualify(template.replace("{prefix}", schema.table_prefix))


def read_migrations(*directories: Traversable) -> tuple[Migration, ...]:
    """The migrations in these directories in order; they are numbered from 1 without gaps."""
    found = []
    for directory in directories:
        texts = {file.name: file for file in directory.iterdir() if file.name.endswith(".sql")}
        for file_name, file in texts.items():
            if match := _FILE_NAME.fullmatch(file_name):
                name = file_name.removesuffix(".sql")
                others = {
                    kind: texts[f"{name}.{kind}.sql"].read_text("utf-8")
                    for kind in ("online", "down")
                    if f"{name}.{kind}.sql" in texts
                }
                found.append(Migration(int(match[1]), name, file.read_text("utf-8"), **others))
    found.sort(key=lambda migration: migration.version)
    assert [m.version for m in found] == list(range(1, len(found) + 1))
    oldest = [0, *(m.oldest_server for m in found)]
    assert oldest == sorted(oldest), "who may not use the store will not be able to later"
    assert all(m.oldest_server <= m.version for m in found), "it would lock out its own servers"
    return tuple(found)


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this release in order."""
    return read_migrations(PACKAGED)


def latest_version() -> int:
    """The schema version of this server: that of the newest migration that it knows."""
    return len(migrations())
