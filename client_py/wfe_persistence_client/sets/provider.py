"""The provider of a namespace set."""

from wfe_persistence_client.sets.events import SetCommands, SetEvents, SetSubscriptions
from wfe_persistence_client.sets.feeds import SetFeeds
from wfe_persistence_client.sets.paging import SetPages
from wfe_persistence_client.sets.queues import SetLocks, SetQueues
from wfe_persistence_client.sets.stores import SetStores
from wfe_persistence_client.sets.work import SetWorker


class NamespaceSetProvider(
    SetPages,
    SetEvents,
    SetSubscriptions,
    SetCommands,
    SetQueues,
    SetLocks,
    SetFeeds,
    SetStores,
):
    """A `PersistenceProvider` of a namespace set; `connect(…, namespace_set=…)` creates one.

    It has the same operations. Where a thing is:

    - A workflow is in the member that the hash of its id gives, with its pointers and with all
      that is written with it in one call: subscriptions, events, errors, commands, items of
      queues.
    - What is written alone is in the member of its key: an event or item in that of its id, a
      command in that of its data, a lock in that of its resource, a sequence in that of its
      definition, an error, a subscription or a lifecycle event in that of its workflow.
    - Receipts, tokens, and ids that the client makes up for subscriptions and events end with `@`
      and the index of the member. An event or subscription with another id is looked for in the
      member of its id, then in all.

    What differs from a single namespace:

    - A write is one transaction on one member. One that refers to things on another member raises
      `MembersDiffer`, and nothing is sent. Lists of items, tokens or errors are all or nothing in
      each member only.
    - A name that is not the workflow's id is unique among such names; to take it costs three calls
      more. See `wfe_persistence_client.sets.names`.
    - Lists and counts are those of all members, in the order of a single namespace; each page is
      read from one member.
    - Epochs rise within a member. For one resource, subscription or command that is the same.
    - Cursors of feeds stand for a place in the feed of each member; the order is that of the
      commits within each member.
    - Exports and imports raise `NotOverASet`.
    """

    _worker_type = SetWorker
