"""PersistWorkflow, PersistWorkflowWithSubscriptions: replace the stored state, all or nothing."""

from __future__ import annotations

import uuid

import pytest

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, invalid
from wfe.persistence.v1.workflow_pb2 import ExecutionPointer, WorkflowInstance, WorkflowStatus


async def _created(api: Api, **fields: object) -> WorkflowInstance:
    """A workflow as it is stored after its creation."""
    instance = make.full_instance(**fields)
    await api.create(instance)
    return instance


async def _pointer_ids(api: Api, id_: str) -> list[str]:
    return [p.id for p in (await api.get_workflow_instance(id_)).execution_pointers]


async def test_persist_replaces_the_stored_state(api: Api) -> None:
    instance = await _created(api)
    after = make.instance(
        id=instance.id,
        name=make.new_id("renamed"),
        workflow_definition_id="other",
        version=2,
        status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
        data_json='{"done": true}',
        create_time=make.time(5),
        execution_pointers=[make.pointer("new"), make.full_pointer("z", retry_count=4)],
        extension_attributes_json={"other": "1"},
    )
    after.ClearField("next_execution")
    after.revision = instance.revision + 1
    assert await api.persist_workflow(after) == after.revision
    assert await api.get_workflow_instance(instance.id) == after


@pytest.mark.parametrize("field", make.fields_of(WorkflowInstance, but=("id", "revision", "view")))
async def test_persist_changes_each_field(api: Api, field: str) -> None:
    instance = make.changed(await _created(api), field)
    instance.revision = await api.persist_workflow(instance)
    assert await api.get_workflow_instance(instance.id) == instance


@pytest.mark.parametrize("field", make.fields_of(ExecutionPointer))
async def test_persist_changes_each_pointer_field(api: Api, field: str) -> None:
    instance = await _created(api)
    instance.execution_pointers[0].CopyFrom(make.changed(instance.execution_pointers[0], field))
    instance.revision = await api.persist_workflow(instance)
    assert await api.get_workflow_instance(instance.id) == instance


@pytest.mark.parametrize(
    "field", make.fields_of(ExecutionPointer, but=("id", "status", "extension_attributes_json"))
)
async def test_persist_empties_each_pointer_field(api: Api, field: str) -> None:
    instance = await _created(api)
    instance.execution_pointers[0].ClearField(field)  # type: ignore[arg-type]
    instance.revision = await api.persist_workflow(instance)
    assert await api.get_workflow_instance(instance.id) == instance


async def test_persist_without_attributes_of_the_workflow_keeps_the_stored_ones(api: Api) -> None:
    """Hosts that do not know them leave them alone."""
    instance = make.full_instance(status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE)
    await api.create_new_workflow(instance)
    attributes = dict(instance.extension_attributes_json)
    instance.extension_attributes_json.clear()
    await api.persist_workflow(instance)
    await api.commit_workflow(instance=instance)
    stored = await api.get_workflow_instance(instance.id)
    assert dict(stored.extension_attributes_json) == attributes
    instance.extension_attributes_json["other"] = "[1]"
    await api.persist_workflow(instance)
    stored = await api.get_workflow_instance(instance.id)
    assert dict(stored.extension_attributes_json) == {"other": "[1]"}
    patch = make.patch(instance.id, description="unrelated")
    await api.commit_workflow(patch=patch, expected_revision=stored.revision)
    stored = await api.get_workflow_instance(instance.id)
    assert dict(stored.extension_attributes_json) == {"other": "[1]"}
    patch = make.patch(instance.id, extension_attributes_json=None)
    await api.commit_workflow(patch=patch, expected_revision=stored.revision)
    stored = await api.get_workflow_instance(instance.id)
    assert dict(stored.extension_attributes_json) == {}


@pytest.mark.parametrize("size", [4096, 4097])
async def test_attributes_of_a_workflow_have_a_most(api: Api, size: int) -> None:
    """As they are returned: jsonb puts a space behind each comma."""
    attributes = {"a": "null", "b": f'["{"x" * (size - 45)}",1]'}
    instance = make.full_instance(extension_attributes_json=attributes, next_execution=None)
    instance.execution_pointers[0].extension_attributes_json["large"] = f'"{"x" * 10_000}"'
    if size > 4096:
        with invalid("instance.extension_attributes_json", reason="TOO_LONG"):
            await api.create_new_workflow(instance)
    else:
        await api.create_new_workflow(instance)
        stored = await api.get_workflow_instance(instance.id)
        assert stored.extension_attributes_json["b"] == attributes["b"].replace(",", ", ")


async def test_persist_removes_extension_attributes_no_longer_named(api: Api) -> None:
    instance = await _created(api)
    del instance.execution_pointers[0].extension_attributes_json["owner"]
    await api.persist_workflow(instance)
    pointer = (await api.get_workflow_instance(instance.id)).execution_pointers[0]
    assert set(pointer.extension_attributes_json) == {"n", "null"}


@pytest.mark.parametrize(
    "field",
    ["root_workflow_id", "description", "reference", "next_execution", "complete_time"],
)
async def test_persist_makes_each_optional_field_absent(api: Api, field: str) -> None:
    instance = await _created(api)
    instance.ClearField(field)  # type: ignore[arg-type]
    await api.persist_workflow(instance)
    assert not (await api.get_workflow_instance(instance.id)).HasField(field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [("1.0", "1.00"), ("1", "1.0"), ("0.10", "0.1"), ("null", "0"), ('"a"', '"a "')],
)
async def test_persist_keeps_every_digit_of_a_pointers_json(
    api: Api, before: str, after: str
) -> None:
    """Also where what was stored before is equal as a number, but written with other digits."""
    instance = await _created(api, execution_pointers=[make.pointer(outcome_json=before)])
    instance.execution_pointers[0].outcome_json = after
    await api.persist_workflow(instance)
    stored = await api.get_workflow_instance(instance.id)
    assert stored.execution_pointers[0].outcome_json == after


async def test_persist_keeps_every_digit_of_the_data(api: Api) -> None:
    instance = await _created(api, data_json="1.0")
    instance.data_json = "1.00"
    await api.persist_workflow(instance)
    assert (await api.get_workflow_instance(instance.id)).data_json == "1.00"


async def test_pointers_no_longer_named_are_gone(api: Api) -> None:
    instance = await _created(api, execution_pointers=[make.pointer(i) for i in "abcd"])
    del instance.execution_pointers[1:3]
    await api.persist_workflow(instance)
    assert await _pointer_ids(api, instance.id) == ["a", "d"]


async def test_persist_without_pointers_leaves_none(api: Api) -> None:
    instance = await _created(api)
    del instance.execution_pointers[:]
    await api.persist_workflow(instance)
    assert await _pointer_ids(api, instance.id) == []


async def test_pointer_removed_and_added_again_is_the_new_one(api: Api) -> None:
    instance = await _created(api, execution_pointers=[make.full_pointer("1")])
    del instance.execution_pointers[:]
    await api.persist_workflow(instance)
    instance.execution_pointers.append(make.pointer("1"))
    await api.persist_workflow(instance)
    stored = await api.get_workflow_instance(instance.id)
    assert list(stored.execution_pointers) == [make.pointer("1")]


@pytest.mark.parametrize(
    "order",
    [
        ["d", "c", "b", "a"],
        ["b", "a", "c", "d"],
        ["a", "b", "d", "c"],
        ["a", "x", "b", "c", "d"],
        ["x", "a", "b", "c", "d"],
        ["b", "c", "d"],
        ["d", "a"],
        ["y", "c", "x"],
    ],
    ids="-".join,
)
async def test_order_of_pointers_is_kept_exactly(api: Api, order: list[str]) -> None:
    """Also when nothing but the order changes."""
    instance = await _created(api, execution_pointers=[make.pointer(i) for i in "abcd"])
    del instance.execution_pointers[:]
    instance.execution_pointers.extend(make.pointer(i) for i in order)
    await api.persist_workflow(instance)
    assert await _pointer_ids(api, instance.id) == order


async def test_persist_touches_no_other_workflow(api: Api) -> None:
    instance, other = await _created(api), await _created(api)
    del instance.execution_pointers[:]
    await api.persist_workflow(instance)
    assert await api.get_workflow_instance(other.id) == other


async def test_empty_name_on_persist_leaves_the_name(api: Api) -> None:
    instance = await _created(api)
    unnamed = make.instance(id=instance.id, name="")
    await api.persist_workflow(unnamed)
    assert (await api.get_workflow_instance(instance.id)).name == instance.name


async def test_persist_renames(api: Api) -> None:
    instance = await _created(api)
    old, instance.name = instance.name, make.new_id("renamed")
    await api.persist_workflow(instance)
    assert (await api.get_workflow_instance_by_name(instance.name)).id == instance.id
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance_by_name(old)


async def test_taken_name_on_persist_is_refused_and_nothing_written(api: Api) -> None:
    instance, other = await _created(api), await _created(api)
    changed = make.full_instance(id=instance.id, name=other.name, data_json='"changed"')
    with fails("ALREADY_EXISTS", "NAME_TAKEN") as failure:
        await api.persist_workflow(changed)
    assert failure.metadata["field"] == "instance.name"
    assert await api.get_workflow_instance(instance.id) == instance


async def test_persist_of_an_absent_workflow_is_not_found_and_creates_nothing(api: Api) -> None:
    instance = make.full_instance()
    for expected_revision in (None, 1):
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await api.persist_workflow(instance, expected_revision)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(instance.id)


async def test_revision_counts_every_persist(api: Api) -> None:
    instance = await _created(api)
    first = instance.revision
    revisions = [await api.persist_workflow(instance) for _ in range(3)]
    assert revisions == [first + 1, first + 2, first + 3]
    assert (await api.get_workflow_instance(instance.id)).revision == first + 3


async def test_revision_within_the_instance_is_ignored(api: Api) -> None:
    instance = await _created(api)
    first = instance.revision
    instance.revision = first + 41
    assert await api.persist_workflow(instance) == first + 1


async def test_without_expected_revision_the_last_writer_wins(api: Api) -> None:
    instance = await _created(api)
    for data in ('"one"', '"two"'):
        instance.data_json = data
        await api.persist_workflow(instance)
    assert (await api.get_workflow_instance(instance.id)).data_json == '"two"'


async def test_expected_revision_that_is_the_stored_one_writes(api: Api) -> None:
    instance = await _created(api)
    first = instance.revision
    assert await api.persist_workflow(instance, first) == first + 1
    assert await api.persist_workflow(instance, first + 1) == first + 2


@pytest.mark.parametrize("other", ["the one before", "the next", "the last of all"])
async def test_other_expected_revision_is_aborted_telling_the_stored_one(
    api: Api, other: str
) -> None:
    instance = await _created(api)
    instance.revision = await api.persist_workflow(instance)
    stored = instance.revision
    expected = {"the one before": stored - 1, "the next": stored + 1}.get(other, 2**63 - 1)
    changed = make.full_instance(id=instance.id, name=instance.name, data_json='"changed"')
    with fails("ABORTED", "REVISION_MISMATCH") as failure:
        await api.persist_workflow(changed, expected)
    assert failure.metadata["revision"] == str(stored)
    assert await api.get_workflow_instance(instance.id) == instance


# With subscriptions.


async def test_persist_with_subscriptions_writes_both_and_answers_ids_in_order(api: Api) -> None:
    instance = await _created(api)
    instance.data_json = '"changed"'
    subscriptions = [
        make.subscription(workflow_id=instance.id, subscription_data_json="null") for _ in range(5)
    ]
    answer = await api.persist_workflow_with_subscriptions(instance, subscriptions)
    assert answer.revision == instance.revision + 1
    assert list(answer.subscription_ids) == [s.id for s in subscriptions]
    instance.revision = answer.revision
    assert await api.get_workflow_instance(instance.id) == instance
    assert [await api.get_subscription(s.id) for s in subscriptions] == subscriptions


async def test_persist_with_subscriptions_chooses_uuids_for_empty_ids(api: Api) -> None:
    instance = await _created(api)
    given = make.subscription()
    answer = await api.persist_workflow_with_subscriptions(
        instance, [make.subscription(id=""), given, make.subscription(id="")]
    )
    first, second, third = answer.subscription_ids
    assert second == given.id
    assert first != third
    for id_ in (first, third):
        assert str(uuid.UUID(id_)) == id_
        assert (await api.get_subscription(id_)).id == id_


async def test_persist_with_no_subscriptions_is_a_persist(api: Api) -> None:
    instance = await _created(api)
    answer = await api.persist_workflow_with_subscriptions(instance, [])
    assert (answer.revision, list(answer.subscription_ids)) == (instance.revision + 1, [])


async def test_persist_with_subscriptions_checks_the_expected_revision(api: Api) -> None:
    instance = await _created(api)
    answer = await api.persist_workflow_with_subscriptions(
        instance, [make.subscription()], instance.revision
    )
    assert answer.revision == instance.revision + 1


async def _writes_nothing(
    api: Api,
    stored: WorkflowInstance,
    persist: WorkflowInstance,
    code: str,
    reason: str,
    expected_revision: int | None = None,
) -> None:
    """Persist with two new subscriptions fails so, and leaves no trace."""
    new = [make.subscription(), make.subscription()]
    with fails(code, reason):
        await api.persist_workflow_with_subscriptions(persist, new, expected_revision)
    for subscription in new:
        with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
            await api.get_subscription(subscription.id)
    assert await api.get_workflow_instance(stored.id) == stored


async def test_revision_mismatch_creates_no_subscription(api: Api) -> None:
    instance = await _created(api)
    changed = make.instance(id=instance.id)
    await _writes_nothing(
        api, instance, changed, "ABORTED", "REVISION_MISMATCH", instance.revision + 6
    )


async def test_taken_name_creates_no_subscription(api: Api) -> None:
    instance, other = await _created(api), await _created(api)
    changed = make.instance(id=instance.id, name=other.name)
    await _writes_nothing(api, instance, changed, "ALREADY_EXISTS", "NAME_TAKEN")


async def test_absent_workflow_creates_no_subscription(api: Api) -> None:
    other = await _created(api)
    await _writes_nothing(api, other, make.instance(), "NOT_FOUND", "WORKFLOW_NOT_FOUND")


async def test_subscription_id_with_other_content_writes_nothing(api: Api) -> None:
    instance = await _created(api)
    taken = make.subscription()
    await api.create_event_subscription(taken)
    before, after = make.subscription(), make.subscription()
    with fails("ALREADY_EXISTS", "SUBSCRIPTION_ALREADY_EXISTS"):
        await api.persist_workflow_with_subscriptions(
            make.instance(id=instance.id), [before, make.subscription(id=taken.id), after]
        )
    for subscription in (before, after):
        with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
            await api.get_subscription(subscription.id)
    assert await api.get_subscription(taken.id) == taken
    assert await api.get_workflow_instance(instance.id) == instance


async def test_subscription_with_the_same_content_is_left_as_it_is(api: Api) -> None:
    instance = await _created(api)
    subscription = make.subscription(subscription_data_json='{"a": 1, "b": 2}')
    await api.create_event_subscription(subscription)
    await api.set_subscription_token(subscription.id, "token")
    held = await api.get_subscription(subscription.id)
    subscription.subscription_data_json = '{"b": 2, "a": 1}'
    answer = await api.persist_workflow_with_subscriptions(
        instance, [subscription, make.subscription()]
    )
    assert answer.revision == instance.revision + 1
    assert answer.subscription_ids[0] == subscription.id
    assert await api.get_subscription(subscription.id) == held


async def test_same_persist_with_subscriptions_again_is_safe(api: Api) -> None:
    instance = await _created(api)
    subscriptions = [make.subscription(), make.subscription()]
    answers = [
        await api.persist_workflow_with_subscriptions(instance, subscriptions) for _ in range(2)
    ]
    assert answers[0].subscription_ids == answers[1].subscription_ids
    first = instance.revision
    assert [answer.revision for answer in answers] == [first + 1, first + 2]
