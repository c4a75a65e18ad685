"""A server whose messages are small: pages and claims are as large as fits, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from tests.support import make
from tests.support.api import Api, for_each, pages
from tests.support.expect import fails
from tests.support.scene import filled, never_due
from tests.support.server import ServerProcess

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
