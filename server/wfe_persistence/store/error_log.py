"""The log of execution errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1.store_pb2 import ExecutionError, ListErrorsRequest
from wfe_persistence import offload
from wfe_persistence.store.documents import array, error_document
from wfe_persistence.store.paging import Cursor, Page, fill_page
from wfe_persistence.store.records import ERROR
from wfe_persistence.store.rows import PGresult, integer, read_int8, text, timestamp
from wfe_persistence.store.tables import Store

PERSIST_ERRORS = f"""
INSERT INTO wfc.execution_errors ({ERROR.names()})
SELECT {ERROR.values("e")}
FROM ROWS FROM (
    jsonb_to_recordset($1::jsonb) AS (
        {ERROR.record()})
) WITH ORDINALITY AS e({ERROR.names()}, n)
ORDER BY e.n
"""


async def persist_errors(store: Store, errors: Sequence[ExecutionError]) -> None:
    """Append errors to the log in this order, all or none."""
    if errors:
        document = await offload.run(lambda: array(map(error_document, errors)))
        await store.write(PERSIST_ERRORS, document)


_decode_error = ERROR.decoder()


def _by_number(row: PGresult, _: ExecutionError) -> Cursor:
    return read_int8(row.get_value(0, len(ERROR))), ""


# An absent filter is NULL, and the planner, which knows the parameters, removes its condition.
#
# Errors are listed as they were logged. Those of a window of time mostly begin right behind the
# cursor; if they do not, and the window has not too many, they are found by their times and sorted.
# (The planner takes them for evenly spread, and would go through all that was logged after an old
# window.)
_IS_BY_TIME = "$1::text IS NULL AND num_nonnulls($2::timestamptz, $3::timestamptz) > 0"
_IS_BEHIND = "($4::bigint IS NULL OR id < $4)"
_IS_IN_TIME = """($2::timestamptz IS NULL OR error_time >= $2)
        AND ($3::timestamptz IS NULL OR error_time < $3)"""
_LISTED = f"""($1::text IS NULL OR workflow_id = $1)
        AND {_IS_IN_TIME} AND {_IS_BEHIND}"""
_MOST_FEW: Final = 50_000
_BY_TIME = f"{_IS_BY_TIME} AND NOT (SELECT found FROM soon)"
LIST_ERRORS = f"""
WITH soon AS MATERIALIZED (
    SELECT count(*) >= $5 AS found FROM (
        SELECT error_time FROM wfc.execution_errors
        WHERE {_IS_BEHIND}
        ORDER BY id DESC
        LIMIT 10 * $5::bigint
    ) e
    WHERE {_IS_IN_TIME}
), few AS MATERIALIZED (
    SELECT id FROM wfc.execution_errors
    WHERE {_BY_TIME}
        AND {_LISTED}
    LIMIT {_MOST_FEW + 1}
), are_few AS MATERIALIZED (
    SELECT count(*) <= {_MOST_FEW} AS yes FROM few
)
SELECT {ERROR.selection()}, id
FROM (
    (
        SELECT * FROM wfc.execution_errors
        WHERE {_BY_TIME} AND (SELECT yes FROM are_few)
            AND id = ANY (ARRAY (SELECT id FROM few ORDER BY id DESC LIMIT $5))
        ORDER BY id DESC
        LIMIT $5
    ) UNION ALL (
        SELECT * FROM wfc.execution_errors
        WHERE {_LISTED}
            AND (NOT ({_BY_TIME}) OR NOT (SELECT yes FROM are_few))
        ORDER BY id DESC
        LIMIT $5
    )
) e
ORDER BY id DESC
LIMIT $5
"""


async def list_errors(
    store: Store,
    request: ListErrorsRequest,
    before: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[ExecutionError]:
    """Logged errors, the most recently logged first."""
    rows = store.stream_once(
        LIST_ERRORS,
        text(request.workflow_id) if request.workflow_id else None,
        timestamp(request.error_time_from) if request.HasField("error_time_from") else None,
        timestamp(request.error_time_before) if request.HasField("error_time_before") else None,
        None if before is None else integer(before[0]),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_error, _by_number, page_size, page_bytes)
