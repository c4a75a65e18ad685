"""The idempotency key of a write: the same request again is the same write."""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
)
from wfe_persistence.store.rows import Param, text

REQUEST_RETENTION_SECONDS: Final = 3600
"""How long keys are kept at least."""


class RequestKey:
    """A write's `request_id` with the hash of its content; false if it has none.

    It also determines the ids that the store chooses, so that a retry is given the same ones.
    """

    def __init__(
        self,
        message: CommitWorkflowRequest
        | PersistWorkflowRequest
        | PersistWorkflowWithSubscriptionsRequest,
    ) -> None:
        """From a request as it arrived, before ids are set in it."""
        self._id = uuid.UUID(message.request_id) if message.request_id else None
        self.params: tuple[Param, Param] = (None, None)
        if self._id is not None:
            content = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
            self.params = (text(str(self._id)), text(f"\\x{content}"))

    def __bool__(self) -> bool:
        return self._id is not None

    def new_id(self, kind: str, n: int) -> str:
        """The id of the n-th new item of a kind, if the host did not choose one."""
        return new_id(self._id, kind, n)


def new_id(request_id: uuid.UUID | None, kind: str, n: int) -> str:
    """The id of the n-th new item of a kind of a request; without a `request_id`, any."""
    return random_id() if request_id is None else str(uuid.uuid5(request_id, f"{kind}/{n}"))


def random_id() -> str:
    """An id that no other has."""
    return str(uuid.uuid4())
