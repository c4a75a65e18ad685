from wfe.persistence.v1 import command_pb2 as c
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st
from wfe.persistence.v1 import subscription_pb2 as s
from wfe.persistence.v1 import workflow_pb2 as w

from tests.support import make
from tests.support.api import Api


async def test_smoke(api: Api) -> None:
    i = make.full_instance()
    r = await api.workflows.CreateNewWorkflow(w.CreateNewWorkflowRequest(instance=i))
    r2 = await api.workflows.CreateNewWorkflow(w.CreateNewWorkflowRequest(instance=i))
    assert r == r2
    g = await api.workflows.GetWorkflowInstance(w.GetWorkflowInstanceRequest(id=i.id))
    i.revision = 1
    assert (
        g.instance.execution_pointers[0].extension_attributes_json
        == i.execution_pointers[0].extension_attributes_json
    )
    assert g.instance == i
    p = await api.workflows.PersistWorkflow(w.PersistWorkflowRequest(instance=i))
    assert p.revision == 2
    p = await api.workflows.PersistWorkflowWithSubscriptions(
        w.PersistWorkflowWithSubscriptionsRequest(
            instance=i,
            subscriptions=[make.subscription(id=""), make.subscription()],
            expected_revision=2,
        )
    )
    assert p.revision == 3
    got = [
        x.instance.id
        async for x in api.workflows.GetWorkflowInstances(
            w.GetWorkflowInstancesRequest(ids=["x", i.id, "y", i.id])
        )
    ]
    assert got == [i.id, i.id]
    ev = make.event()
    await api.events.CreateEvent(e.CreateEventRequest(event=ev))
    assert (await api.events.GetEvent(e.GetEventRequest(id=ev.id))).event == ev
    ids = await api.events.GetEvents(
        e.GetEventsRequest(event_name=ev.event_name, event_key=ev.event_key)
    )
    assert list(ids.event_ids) == [ev.id]
    await api.events.GetRunnableEvents(e.GetRunnableEventsRequest())
    sub = make.subscription()
    await api.subscriptions.CreateEventSubscription(
        s.CreateEventSubscriptionRequest(subscription=sub)
    )
    assert (
        await api.subscriptions.GetSubscription(s.GetSubscriptionRequest(id=sub.id))
    ).subscription == sub
    l = await api.subscriptions.GetSubscriptions(
        s.GetSubscriptionsRequest(event_name=sub.event_name, event_key=sub.event_key)
    )
    assert list(l.subscriptions) == [sub]
    a = await api.subscriptions.SetSubscriptionToken(
        s.SetSubscriptionTokenRequest(id=sub.id, token="t", worker_id="w")
    )
    assert a.acquired
    a = await api.subscriptions.SetSubscriptionToken(
        s.SetSubscriptionTokenRequest(id=sub.id, token="t2", worker_id="w")
    )
    assert not a.acquired
    await api.subscriptions.ClearSubscriptionToken(
        s.ClearSubscriptionTokenRequest(id=sub.id, token="t")
    )
    await api.commands.ScheduleCommand(c.ScheduleCommandRequest(command=make.command()))
    cl = await api.commands.ClaimCommands(c.ClaimCommandsRequest())
    await api.commands.CompleteCommands(
        c.CompleteCommandsRequest(lease_tokens=[x.lease_token for x in cl.commands])
    )
    await api.store.PersistErrors(st.PersistErrorsRequest(errors=[make.error()]))
    assert len((await api.store.ListErrors(st.ListErrorsRequest())).errors) == 1
    await api.workflows.GetRunnableInstances(w.GetRunnableInstancesRequest())
    n = await api.workflows.NextDefinitionSequence(
        w.NextDefinitionSequenceRequest(definition_id="d")
    )
    assert n.number == 1
    await api.store.TruncateAll(st.TruncateAllRequest())
