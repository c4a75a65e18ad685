"""GetWorkflowInstance, GetWorkflowInstanceByName, GetWorkflowInstances, NextDefinitionSequence."""

from __future__ import annotations

import grpc
import pytest

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowView

MIB = 1024 * 1024
_VIEWS = [view for view in WorkflowView.values() if view]


async def _created(api: Api, **fields: object) -> WorkflowInstance:
    instance = make.full_instance(**fields)
    await api.create(instance)
    return instance


async def test_workflow_is_found_by_id_and_by_name(api: Api) -> None:
    instance = await _created(api)
    assert await api.get_workflow_instance(instance.id) == instance
    assert await api.get_workflow_instance_by_name(instance.name) == instance


async def test_absent_id_is_not_found(api: Api) -> None:
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(make.new_id())


async def test_absent_name_is_not_found(api: Api) -> None:
    instance = await _created(api)
    for name in (make.new_id(), instance.id):
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await api.get_workflow_instance_by_name(name)


async def test_name_is_no_id(api: Api) -> None:
    instance = await _created(api)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(instance.name)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
async def test_any_number_of_pointers_comes_back(api: Api, count: int) -> None:
    pointers = [make.pointer(str(i)) for i in range(count)]
    instance = await _created(api, execution_pointers=pointers)
    assert await api.get_workflow_instance(instance.id) == instance
    assert await api.get_workflow_instances([instance.id]) == [instance]


# GetWorkflowInstances.


async def test_batch_of_none_is_empty(api: Api) -> None:
    assert await api.get_workflow_instances([]) == []


async def test_batch_comes_whole_and_in_the_order_asked(api: Api) -> None:
    instances = [
        await _created(api, execution_pointers=[make.full_pointer(str(n)) for n in range(i)])
        for i in range(5)
    ]
    for asked in (instances, instances[::-1], instances[2:] + instances[:2]):
        assert await api.get_workflow_instances([i.id for i in asked]) == asked


async def test_batch_leaves_out_what_is_absent(api: Api) -> None:
    first, second = await _created(api), await _created(api)
    asked = [make.new_id(), second.id, make.new_id(), first.id, make.new_id()]
    assert await api.get_workflow_instances(asked) == [second, first]


async def test_batch_of_absent_ones_only_is_empty(api: Api) -> None:
    assert await api.get_workflow_instances([make.new_id(), make.new_id()]) == []


async def test_batch_answers_an_id_once_where_it_is_first_asked_for(api: Api) -> None:
    first, second = await _created(api), await _created(api, execution_pointers=[])
    asked = [second.id, first.id, second.id, second.id, make.new_id(), first.id]
    assert await api.get_workflow_instances(asked) == [second, first]
    assert await api.get_workflow_instances([first.id] * 1000) == [first]


async def test_batch_of_a_thousand_ids(api: Api) -> None:
    instances = [await _created(api) for _ in range(3)]
    asked = [make.new_id() for _ in range(997)]
    for at, instance in zip((0, 500, 999), instances, strict=True):
        asked.insert(at, instance.id)
    assert await api.get_workflow_instances(asked) == instances


async def test_batch_of_more_ids_is_refused(api: Api) -> None:
    for asked in ([make.new_id() for _ in range(1001)], ["x"] * 1_000_000):
        with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
            await api.get_workflow_instances(asked)
        assert failure.violations == {"ids": "NUMBER_RANGE"}


@pytest.mark.parametrize("view", _VIEWS)
async def test_batch_of_small_and_large_ones_comes_whole_and_in_order(
    api: Api, view: WorkflowView.ValueType
) -> None:
    """The server reads it in many pages; some of them are larger than a page."""
    document = f'"{"x" * 40_000}"'
    sizes = [3, 0, 60, 1, 2500, 0, 2, 5, 30, 1]
    instances = [
        await _created(
            api,
            execution_pointers=[
                make.full_pointer(f"{n:04}", outcome_json=document if size < 100 else "1")
                for n in range(size)
            ],
        )
        for size in sizes * 3
    ]
    asked = [id_ for i in instances for id_ in (make.new_id(), i.id)]
    expected = [await api.get_workflow_instance(i.id, view) for i in instances]
    assert await api.get_workflow_instances(asked, view) == expected


async def test_batch_may_be_larger_than_a_message(api: Api, target: str) -> None:
    """Through a channel with gRPC's own limit of 4 MiB a message."""
    large = f'"{"x" * (3 * MIB // 2)}"'
    instances = [await _created(api, data_json=large) for _ in range(4)]
    assert sum(instance.ByteSize() for instance in instances) > 4 * MIB
    async with grpc.aio.insecure_channel(target) as channel:
        assert await Api(channel).get_workflow_instances([i.id for i in instances]) == instances


# NextDefinitionSequence.


async def test_sequence_starts_at_1_and_leaves_no_gap(api: Api) -> None:
    definition = make.new_id("definition")
    assert [await api.next_definition_sequence(definition) for _ in range(4)] == [1, 2, 3, 4]


async def test_sequences_of_different_definitions_are_independent(api: Api) -> None:
    first, second = make.new_id("definition"), make.new_id("definition")
    numbers = [await api.next_definition_sequence(d) for d in (first, first, second, first, second)]
    assert numbers == [1, 2, 1, 3, 2]
