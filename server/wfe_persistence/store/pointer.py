"""Execution pointers: how they are read, and one workflow's pointers in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1.workflow_pb2 import ExecutionPointer, WorkflowInstance
from wfe_persistence.errors import revision_mismatch, workflow_not_found
from wfe_persistence.store.paging import LEAST_NUMBER, NUMBER, Cursor, Page, behind, fill_page
from wfe_persistence.store.records import POINTER
from wfe_persistence.store.rows import PGresult, integer, read_int8, text
from wfe_persistence.store.tables import Store
from wfe_persistence.store.wire import Cells, Heads

# Pointers that can still run: WorkflowView ACTIVE, and the condition of their index.
IS_ACTIVE = """(p.active OR p.status IN
        ('Pending', 'Running', 'Sleeping', 'WaitingForEvent', 'PendingPredecessor'))"""

POINTER_SELECTION = POINTER.selection("p")
read_pointer = POINTER.reader()
"""Reads the first columns of a row, POINTER_SELECTION, into a pointer; other columns follow."""

FEW: Final = 6
"""For so many pointers `read_pointer` takes less than `add_pointers`."""
AT_ONCE: Final = 64
"""For how many pointers `add_pointers` is called at a time: it takes 0.2 ms for them."""
_encode = POINTER.encoder()
_heads = Heads(WorkflowInstance.DESCRIPTOR.fields_by_name["execution_pointers"])


def add_pointers(instance: WorkflowInstance, columns: Sequence[Cells]) -> None:
    """Append pointers to a workflow, from the values of each column of POINTER_SELECTION."""
    heads = _heads
    encoded = [heads[len(pointer)] + pointer for pointer in _encode(columns)]
    instance.MergeFromString(b"".join(encoded))


def _list_pointers(*, condition: str) -> str:
    """A page of the pointers that meet a condition. The revision comes with every row, and with a
    row of its own if there are no pointers."""
    return f"""
SELECT {POINTER_SELECTION},
    p.ordinal, w.revision
FROM wfc.workflows w LEFT JOIN LATERAL (
    SELECT * FROM wfc.execution_pointers p
    WHERE {condition}
    AND {behind("(p.ordinal, p.id)", "$2::bigint", "$3::text", least=LEAST_NUMBER)}
    ORDER BY p.ordinal, p.id
    LIMIT $4
) p ON TRUE
WHERE w.id = $1
ORDER BY p.ordinal, p.id
"""


_ORDINAL = len(POINTER)
_REVISION = _ORDINAL + 1

LIST_EXECUTION_POINTERS = _list_pointers(condition="p.workflow_id = w.id")
LIST_ACTIVE_EXECUTION_POINTERS = _list_pointers(
    condition=f"p.workflow_id = w.id AND {IS_ACTIVE}",
)


async def list_execution_pointers(
    store: Store,
    workflow_id: str,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
    *,
    active_only: bool,
    expected_revision: int | None,
) -> tuple[Page[ExecutionPointer], int]:
    """One workflow's pointers in their order, and the workflow's revision.

    Raises if there is no such workflow, or if it has another revision than the expected one.
    """
    revision: int | None = None

    def decode(row: PGresult) -> ExecutionPointer | None:
        nonlocal revision
        get = row.get_value
        revision = read_int8(get(0, _REVISION))
        if expected_revision is not None and revision != expected_revision:
            raise revision_mismatch(revision, expected_revision)
        if get(0, 0) is None:
            return None
        pointer = ExecutionPointer()
        read_pointer(get, 0, pointer)
        return pointer

    # Row by row: a page ends early if the next pointer would not fit in one message.
    rows = store.stream(
        LIST_ACTIVE_EXECUTION_POINTERS if active_only else LIST_EXECUTION_POINTERS,
        text(workflow_id),
        *NUMBER.params(after),
        integer(page_size + 1),
    )
    page = await fill_page(
        rows,
        decode,
        lambda row, pointer: (read_int8(row.get_value(0, _ORDINAL)), pointer.id),
        page_size,
        page_bytes,
    )
    if revision is None:
        raise workflow_not_found("workflow_id")
    return page, revision
