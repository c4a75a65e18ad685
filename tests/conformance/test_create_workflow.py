"""CreateNewWorkflow: inserts a workflow with its pointers, once."""

from __future__ import annotations

import uuid

import pytest

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails
from wfe.persistence.v1.workflow_pb2 import ExecutionPointer, WorkflowInstance


async def test_create_answers_id_name_and_first_revision(api: Api) -> None:
    instance = make.full_instance()
    answer = await api.create_new_workflow(instance)
    assert (answer.id, answer.name) == (instance.id, instance.name)
    assert answer.revision >= 1
    assert answer.revision == (await api.get_workflow_instance(instance.id)).revision


async def test_create_stores_every_field(api: Api) -> None:
    instance = make.full_instance()
    await api.create(instance)
    assert await api.get_workflow_instance(instance.id) == instance


async def test_create_stores_a_workflow_without_pointers(api: Api) -> None:
    instance = make.instance()
    await api.create_new_workflow(instance)
    assert not (await api.get_workflow_instance(instance.id)).execution_pointers


async def test_empty_id_becomes_a_uuid(api: Api) -> None:
    answers = [await api.create_new_workflow(make.instance(id="")) for _ in range(2)]
    assert answers[0].id != answers[1].id
    for answer in answers:
        assert str(uuid.UUID(answer.id)) == answer.id
        assert (await api.get_workflow_instance(answer.id)).id == answer.id


async def test_empty_name_becomes_the_id(api: Api) -> None:
    given, chosen = make.instance(name=""), make.instance(id="", name="")
    for instance in (given, chosen):
        answer = await api.create_new_workflow(instance)
        assert answer.name == answer.id
        assert (await api.get_workflow_instance_by_name(answer.id)).id == answer.id


async def test_given_revision_is_ignored(api: Api) -> None:
    instance = make.instance(revision=2**62)
    first = (await api.create_new_workflow(instance)).revision
    assert first != instance.revision
    assert (await api.get_workflow_instance(instance.id)).revision == first
    again = await api.create_new_workflow(make.instance(id=instance.id, revision=first + 7))
    assert again.revision == first


async def test_same_create_again_answers_the_same_and_changes_nothing(api: Api) -> None:
    instance = make.full_instance()
    first = await api.create_new_workflow(instance)
    before = await api.get_workflow_instance(instance.id)
    assert await api.create_new_workflow(instance) == first
    assert await api.get_workflow_instance(instance.id) == before


async def test_same_create_again_after_a_persist_changes_nothing(api: Api) -> None:
    instance = make.full_instance()
    first = await api.create_new_workflow(instance)
    moved_on = make.full_instance(id=instance.id, data_json='{"moved": "on"}')
    await api.persist_workflow(moved_on)
    before = await api.get_workflow_instance(instance.id)
    assert await api.create_new_workflow(instance) == first
    assert await api.get_workflow_instance(instance.id) == before


async def test_same_create_again_after_its_name_went_to_another_changes_nothing(api: Api) -> None:
    instance = make.full_instance()
    first = await api.create_new_workflow(instance)
    await api.persist_workflow(make.full_instance(id=instance.id, name=make.new_id("renamed")))
    await api.create_new_workflow(make.instance(name=instance.name))
    before = await api.get_workflow_instance(instance.id)
    assert await api.create_new_workflow(instance) == first
    assert await api.get_workflow_instance(instance.id) == before


async def test_json_of_other_member_order_and_spacing_is_the_same_content(api: Api) -> None:
    instance = make.instance(
        data_json='{"a": 1, "b": {"c": 2, "d": [1, 2]}}',
        execution_pointers=[make.pointer(outcome_json='{"x": 1, "y": 2}')],
    )
    first = await api.create_new_workflow(instance)
    instance.data_json = '{"b":{"d":[1,2],"c":2},"a":1}'
    instance.execution_pointers[0].outcome_json = '\n{ "y":2, "x":1 }'
    assert await api.create_new_workflow(instance) == first


async def test_name_given_as_the_id_is_the_same_content_as_no_name(api: Api) -> None:
    instance = make.instance(name="")
    first = await api.create_new_workflow(instance)
    instance.name = instance.id
    assert await api.create_new_workflow(instance) == first


async def test_times_that_differ_below_a_microsecond_are_the_same_content(api: Api) -> None:
    instance = make.instance()
    first = await api.create_new_workflow(instance)
    instance.create_time.nanos += 999
    assert await api.create_new_workflow(instance) == first


async def _is_refused_as_other_content(
    api: Api, stored: WorkflowInstance, other: WorkflowInstance
) -> None:
    await api.create_new_workflow(stored)
    before = await api.get_workflow_instance(stored.id)
    with fails("ALREADY_EXISTS", "WORKFLOW_ALREADY_EXISTS"):
        await api.create_new_workflow(other)
    assert await api.get_workflow_instance(stored.id) == before


@pytest.mark.parametrize("field", make.fields_of(WorkflowInstance, but=("id", "revision", "view")))
async def test_same_id_with_another_field_is_refused(api: Api, field: str) -> None:
    instance = make.full_instance()
    await _is_refused_as_other_content(api, instance, make.changed(instance, field))


@pytest.mark.parametrize("field", make.fields_of(ExecutionPointer))
async def test_same_id_with_another_pointer_field_is_refused(api: Api, field: str) -> None:
    pointer = make.full_pointer()
    instance = make.full_instance(execution_pointers=[pointer])
    other = make.full_instance(
        id=instance.id, name=instance.name, execution_pointers=[make.changed(pointer, field)]
    )
    await _is_refused_as_other_content(api, instance, other)


async def test_same_id_with_other_order_of_pointers_is_refused(api: Api) -> None:
    first, second = make.pointer("1"), make.pointer("2")
    instance = make.instance(execution_pointers=[first, second])
    other = make.instance(id=instance.id, execution_pointers=[second, first])
    await _is_refused_as_other_content(api, instance, other)


@pytest.mark.parametrize("other", [None, '""', "{}", "0", "false"])
async def test_same_id_with_absent_or_empty_instead_of_null_is_refused(
    api: Api, other: str | None
) -> None:
    instance = make.instance(execution_pointers=[make.pointer(outcome_json="null")])
    pointer = make.pointer(outcome_json=other)
    await _is_refused_as_other_content(
        api, instance, make.instance(id=instance.id, execution_pointers=[pointer])
    )


async def test_taken_name_is_refused_naming_the_field(api: Api) -> None:
    first = make.full_instance()
    await api.create_new_workflow(first)
    second = make.full_instance(name=first.name)
    with fails("ALREADY_EXISTS", "NAME_TAKEN") as failure:
        await api.create_new_workflow(second)
    assert failure.metadata["field"] == "instance.name"
    assert (await api.get_workflow_instance_by_name(first.name)).id == first.id
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(second.id)


async def test_name_that_is_the_id_of_an_unnamed_workflow_is_taken(api: Api) -> None:
    first = make.instance()
    await api.create_new_workflow(first)
    with fails("ALREADY_EXISTS", "NAME_TAKEN"):
        await api.create_new_workflow(make.instance(name=first.id))


async def test_id_that_is_the_name_of_another_workflow_is_free_if_a_name_is_given(api: Api) -> None:
    first = make.instance(name=make.new_id("name"))
    await api.create_new_workflow(first)
    with fails("ALREADY_EXISTS", "NAME_TAKEN"):
        await api.create_new_workflow(make.instance(id=first.name))
    second = make.instance(id=first.name, name=make.new_id("name"))
    await api.create_new_workflow(second)
    assert (await api.get_workflow_instance(first.name)).name == second.name


async def test_name_given_up_by_another_workflow_is_free(api: Api) -> None:
    first = make.full_instance()
    await api.create_new_workflow(first)
    await api.persist_workflow(make.full_instance(id=first.id, name=make.new_id("renamed")))
    second = make.full_instance(name=first.name)
    await api.create_new_workflow(second)
    assert (await api.get_workflow_instance_by_name(first.name)).id == second.id
