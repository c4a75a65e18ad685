"""The messages of moves of namespaces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason as R
from wfe_persistence.rpc.check import Check
from wfe_persistence.store.moving import directory
from wfe_persistence.store.moving.drive import Progress
from wfe_persistence.store.moving.mover import Mover
from wfe_persistence.store.moving.prerequisites import Plan, Way

_WAYS: Final = {
    pb.MOVE_WAY_UNSPECIFIED: None,
    pb.MOVE_WAY_LOGICAL_REPLICATION: Way.LOGICAL,
    pb.MOVE_WAY_COPY: Way.COPY,
}
_OF_WAY: Final = {way: value for value, way in _WAYS.items()}

_PHASES: Final = {
    "planned": pb.MOVE_PHASE_PLANNED,
    directory.COPYING: pb.MOVE_PHASE_COPYING,
    directory.SWITCHING: pb.MOVE_PHASE_SWITCHING,
    directory.CLEANING: pb.MOVE_PHASE_CLEANING,
    "moved": pb.MOVE_PHASE_MOVED,
}


def check_move(request: pb.MoveNamespaceRequest, check: Check) -> Way | None:
    """How a namespace is to be moved; None: as the server chooses."""
    check.namespace("name", request.name)
    if not request.database:
        check.add("", "database", R.FIELD_VIOLATION_REASON_REQUIRED, "is required")
    check.database("database", request.database)
    if request.way not in _WAYS:
        check.add("", "way", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
    check.done()
    return _WAYS[request.way]


async def move(
    mover: Mover, request: pb.MoveNamespaceRequest, way: Way | None
) -> AsyncGenerator[pb.MoveNamespaceResponse, None]:
    """Move it, and say how far it is."""
    if request.dry_run:
        yield _response(await mover.look(request.name, request.database, way))
        return
    async with aclosing(mover.move(request.name, request.database, way)) as moving:
        async for progress in moving:
            yield _response(progress)


def _planned(plan: Plan) -> pb.MoveNamespaceResponse:
    return pb.MoveNamespaceResponse(
        phase=pb.MOVE_PHASE_PLANNED,
        way=_OF_WAY[plan.way],
        obstacles=plan.against_logical,
        pause=_duration(plan.pause_seconds),
        total_bytes=plan.bytes,
    )


def _response(progress: Progress) -> pb.MoveNamespaceResponse:
    if progress.plan is not None:
        return _planned(progress.plan)
    return pb.MoveNamespaceResponse(
        phase=_PHASES[progress.phase],
        way=_OF_WAY[progress.way],
        pause=_duration(progress.pause_seconds) if progress.pause_seconds else None,
        total_bytes=progress.total_bytes,
        copied_bytes=progress.copied_bytes,
        lag_bytes=progress.lag_bytes,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
