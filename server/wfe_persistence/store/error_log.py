"""The log of execution errors."""

from __future__ import annotations

from collections.abc import Sequence

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
LIST_ERRORS = f"""
SELECT {ERROR.selection()}, id
FROM wfc.execution_errors
WHERE ($1::text IS NULL OR workflow_id = $1)
    AND ($2::timestamptz IS NULL OR error_time >= $2)
    AND ($3::timestamptz IS NULL OR error_time < $3)
    AND ($4::bigint IS NULL OR id < $4)
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
