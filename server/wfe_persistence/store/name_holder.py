"""Names of a namespace set: which workflow holds each, in the member to which the name belongs.

The workflow may be in another member, so this is not part of the transaction that writes it. A
client holds a lock in the workflow's member while it takes a name for it, and writes it under that
lock; so one that died in between can be told from one that is at work, and can no longer write.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.workflow_pb2 import SetNameHolderRequest
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS
from wfe_persistence.store.rows import PGresult, read_text, text
from wfe_persistence.store.tables import Store


class Holder(NamedTuple):
    """Which workflow holds a name, and under which claim; both empty: none."""

    workflow_id: str
    claim_id: str


NOBODY: Final = Holder("", "")


# A workflow of this member that has the name holds it, too: its id may be its name. No row: the
# holder came or went after the snapshot.
SET_NAME_HOLDER = """
WITH taken AS (
    INSERT INTO wfc.name_holders (name, workflow_id, claim_id)
    SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM wfc.workflows WHERE name = $1 AND id <> $2)
    ON CONFLICT (name) DO NOTHING
    RETURNING workflow_id, claim_id
), holders AS (
    SELECT workflow_id, claim_id FROM taken
    UNION ALL
    SELECT workflow_id, claim_id FROM wfc.name_holders WHERE name = $1
    UNION ALL
    SELECT id, '' FROM wfc.workflows WHERE name = $1 AND id <> $2
)
SELECT workflow_id, claim_id FROM holders LIMIT 1
"""

HAND_NAME_ON = """
WITH handed AS (
    UPDATE wfc.name_holders SET workflow_id = $2, claim_id = $3
    WHERE name = $1 AND claim_id = $4
    RETURNING workflow_id, claim_id
)
SELECT workflow_id, claim_id FROM handed
UNION ALL
SELECT workflow_id, claim_id FROM wfc.name_holders
WHERE name = $1 AND NOT EXISTS (SELECT FROM handed)
"""

GIVE_NAME_UP = """
WITH given_up AS (
    DELETE FROM wfc.name_holders WHERE name = $1 AND claim_id = $2 RETURNING name
)
SELECT workflow_id, claim_id FROM wfc.name_holders
WHERE name = $1 AND NOT EXISTS (SELECT FROM given_up)
"""


async def set_name_holder(store: Store, request: SetNameHolderRequest) -> Holder:
    """Give a name to a workflow, or give it up; returns who has it then."""
    name, expected = text(request.name), text(request.expected_claim_id)
    if not request.workflow_id:
        return _holder(await store.write(GIVE_NAME_UP, name, expected))
    given = [name, text(request.workflow_id), text(request.claim_id)]
    if request.expected_claim_id:
        return _holder(await store.write(HAND_NAME_ON, *given, expected))
    for _ in range(MAX_ATTEMPTS):
        holder = _holder(await store.write(SET_NAME_HOLDER, *given))
        if holder != NOBODY:
            return holder
    raise PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the name changed hands repeatedly",
        retry_after=0.1,
    )


GET_NAME_HOLDER = "SELECT workflow_id, claim_id FROM wfc.name_holders WHERE name = $1"


async def get_name_holder(store: Store, name: str) -> Holder:
    """Who has a name."""
    return _holder(await store.read(GET_NAME_HOLDER, text(name)))


def _holder(rows: PGresult) -> Holder:
    if not rows.ntuples:
        return NOBODY
    return Holder(read_text(rows.get_value(0, 0)), read_text(rows.get_value(0, 1)))
