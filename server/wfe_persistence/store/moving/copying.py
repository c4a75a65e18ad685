"""The other way: a copy of the tables by COPY, row for row, while writes are held.

Unlike an export it has everything: leases, receipts, locks, keys of requests and feeds too.
"""

from __future__ import annotations

from collections.abc import Callable

from wfe_persistence.store.moving import prerequisites
from wfe_persistence.store.moving.sides import AsyncConnection, Side, sql

Report = Callable[[int], None]
"""Told of the bytes that have been copied."""


async def copy_tables(
    here: AsyncConnection, there: AsyncConnection, source: Side, target: Side, report: Report
) -> None:
    """Copy the rows of all tables, those that refer to others behind them. In a transaction of each
    connection: that of `here` holds back all writes, that of `there` is committed by the caller."""
    of, into = source.tables(), target.tables()
    columns = await prerequisites.columns(here, source)
    done = 0
    for table in of:
        names = ", ".join(f'"{name}"' for name in columns[table])
        # Rows are as they were: no trigger may number them anew. (Only what our migrations create,
        # which an owner may do; that rows refer to rows that are there is checked all the same.)
        await there.execute(sql(f"ALTER TABLE {into[table]} DISABLE TRIGGER USER"))
        async with (
            here.cursor().copy(sql(f"COPY {of[table]} ({names}) TO STDOUT")) as rows,
            there.cursor().copy(sql(f"COPY {into[table]} ({names}) FROM STDIN")) as written,
        ):
            async for data in rows:
                await written.write(data)
                done += len(data)
                report(done)
        await there.execute(sql(f"ALTER TABLE {into[table]} ENABLE TRIGGER USER"))
