"""A server whose messages are small: pages and claims are as large as fits, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api, for_each, pages
from tests.support.expect import fails
from tests.support.scene import filled, never_due
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowView
from wfe_persistence.rpc.check.read_back import HEADER_BYTES

LIMIT: Final = 16_384
COUNT: Final = 60


@pytest.fixture
async def small(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    """The API of such a server, through a client that takes no larger message."""
    arguments = ("--db-url", database_url, "--max-message-bytes", str(LIMIT))
    options = [("grpc.max_receive_message_length", LIMIT)]
    with ServerProcess(tmp_path / "log", *arguments) as server:
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            yield Api(channel)


async def test_pages_of_ids_fit(small: Api) -> None:
    ids = sorted(filled(f"{i:02}", "x", 512) for i in range(COUNT))
    await for_each(small.create_new_workflow, [make.instance(id=id_, name=id_) for id_ in ids])
    await for_each(small.create_event, [make.event(id=id_, event_key="k") for id_ in ids])
    key: dict[str, Any] = {"event_name": "order.paid", "event_key": "k"}
    for rpc, field, given in (
        (small.get_runnable_instances, "instance_ids", {}),
        (small.get_runnable_events, "event_ids", {}),
        (small.get_events, "event_ids", key),
    ):
        answers = await pages(rpc, page_size=1000, **given)
        assert [id_ for answer in answers for id_ in getattr(answer, field)] == ids
        # As few as possible.
        assert len(answers) == 2


async def test_no_more_commands_are_claimed_than_can_be_answered(small: Api) -> None:
    commands = [make.command(data=filled(f"{i:02}", "x", 2048)) for i in range(COUNT)]
    await for_each(small.schedule_command, commands)
    claimed: list[str] = []
    sizes = []
    while claims := await small.claim_commands(limit=1000):
        claimed += [claim.command.data for claim in claims]
        sizes.append(len(claims))
    assert sorted(claimed) == sorted(command.data for command in commands)
    assert sizes == [7] * 8 + [4]


async def test_answer_of_a_commit_is_measured_before_it_is_written(small: Api) -> None:
    instance = never_due()
    await small.create_new_workflow(instance)
    one = make.event(id="", event_name="n", event_key="", event_data_json="1", is_processed=True)
    patch = make.patch(instance.id)
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE") as failure:
        await small.commit_workflow(patch=patch, expected_revision=1, create_events=[one] * 500)
    assert failure.metadata["limit_bytes"] == str(LIMIT)
    assert not (await small.list_events(event_name="n")).events
    answer = await small.commit_workflow(
        patch=patch, expected_revision=1, create_events=[one] * 300
    )
    assert len(set(answer.event_ids)) == 300


# A header can always be read.

TOGETHER: Final = LIMIT - HEADER_BYTES
"""What description and data may have together."""
HEADER: Final = WorkflowView.WORKFLOW_VIEW_HEADER
WIDEST_TIME: Final = Timestamp(seconds=-62_135_596_800, nanos=999_999_000)
"""The time that takes the most bytes."""


def _text(field: str, size: int) -> str:
    """A description of this size, or data that have it when they are read back, and fewer now."""
    if field == "description":
        return "d" * size
    ones = min(size // 4, 100)
    return f'["{"x" * (size - 4 - 3 * ones)}"{",1" * ones}]'


async def _read_header(api: Api, id_: str) -> WorkflowInstance:
    """As every RPC returns it, with all there is in it."""
    got = await api.get_workflow_instance(id_, view=HEADER)
    assert got == await api.get_workflow_instance_by_name(got.name, view=HEADER)
    assert [got] == await api.get_workflow_instances([id_], view=HEADER)
    answers = await pages(api.list_workflows, view=HEADER, page_size=1)
    assert got in [instance for answer in answers for instance in answer.instances]
    return got


@pytest.mark.parametrize("effects", [False, True], ids=["alone", "with effects"])
@pytest.mark.parametrize(
    ("first", "second"), [("description", "data_json"), ("data_json", "description")]
)
async def test_header_can_be_read_whatever_patches_set(
    small: Api, first: str, second: str, effects: bool
) -> None:
    for name in "abc":
        await small.create_new_workflow(never_due(id=name))

    async def patch(id_: str, revision: int, **fields: Any) -> None:
        event = make.event(id=f"{revision}{id_[:500]}", event_name="n", is_processed=True)
        await small.commit_workflow(
            patch=make.patch(id_, **fields),
            expected_revision=revision,
            create_events=[event] if effects else (),
        )

    for n, first_bytes in enumerate((50, 6_000, TOGETHER - 50)):
        id_ = filled(f"{n}", "i", 512)
        await small.create_new_workflow(never_due(id=id_))
        await patch(id_, 1, **{first: _text(first, first_bytes)})
        events = (await small.list_events(event_name="n")).events
        with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE") as failure:
            await patch(id_, 2, **{second: _text(second, TOGETHER - first_bytes + 1)})
        assert failure.metadata["limit_bytes"] == str(LIMIT)
        assert (await _read_header(small, id_)).revision == 2
        assert (await small.list_events(event_name="n")).events == events
        await patch(id_, 2, **{second: _text(second, TOGETHER - first_bytes)})
        # Now it is full: neither may grow, but all else may.
        for field, size in ((first, first_bytes), (second, TOGETHER - first_bytes)):
            with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
                await patch(id_, 3, **{field: _text(field, size + 1)})
        name = filled(f"{n}", "n", 512)
        await patch(
            id_, 3,
            name=name, root_workflow_id="r" * 512, workflow_definition_id="d" * 512,
            reference="f" * 512, version=2**31 - 1, next_execution=-1,
            create_time=WIDEST_TIME, complete_time=WIDEST_TIME,
        )  # fmt: skip
        got = await _read_header(small, id_)
        assert (got.revision, got.name) == (4, name)
        assert len(got.description) + len(got.data_json) == TOGETHER
        # What one gives up the other may have.
        await patch(id_, 4, description=None)
        await patch(id_, 5, data_json=_text("data_json", TOGETHER))
        assert len((await _read_header(small, id_)).data_json) == TOGETHER


async def test_header_can_be_read_whatever_is_written_at_once(small: Api) -> None:
    def texts(more: int = 0) -> dict[str, Any]:
        return {
            "description": _text("description", 5_000),
            "data_json": _text("data_json", TOGETHER - 5_000 + more),
        }

    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        await small.create_new_workflow(never_due(id="w", **texts(1)))
    await small.create_new_workflow(never_due(id="w", **texts()))
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        await small.persist_workflow(never_due(id="w", **texts(1)))
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        await small.commit_workflow(patch=make.patch("w", **texts(1)), expected_revision=1)
    await small.commit_workflow(patch=make.patch("w", **texts()), expected_revision=1)
    assert (await _read_header(small, "w")).revision == 2


async def test_members_that_are_not_stored_do_not_count(small: Api) -> None:
    """Only the last one of a name is."""
    await small.create_new_workflow(never_due(id="w", description="d" * (TOGETHER - 1_000)))
    data = f'{{"a":"{"x" * 900}","a":"{"y" * 900}"}}'
    await small.commit_workflow(patch=make.patch("w", data_json=data), expected_revision=1)
    assert (await _read_header(small, "w")).data_json == f'{{"a": "{"y" * 900}"}}'
