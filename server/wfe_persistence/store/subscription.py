"""Event subscriptions, and the tokens with which one worker at a time holds a subscription."""

from __future__ import annotations

from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.subscription_pb2 import (
    EventSubscription,
    ListSubscriptionsRequest,
    RenewSubscriptionTokenResponse,
    SetSubscriptionTokenResponse,
)
from wfe_persistence import metrics, offload
from wfe_persistence.errors import PersistenceError, field_error, invalid_field
from wfe_persistence.store.create_parts import create_each_statement, create_statement
from wfe_persistence.store.documents import subscription_document
from wfe_persistence.store.lease import NEXT_EPOCH, expired, expiry_after, unexpired_or_endless
from wfe_persistence.store.paging import LEAST_TIME, TIME, Cursor, Page, behind, fill_page
from wfe_persistence.store.records import SUBSCRIPTION
from wfe_persistence.store.rows import (
    PGresult,
    boolean,
    integer,
    read_bool,
    read_int8,
    read_time,
    text,
    timestamp,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.together import Each, by_column, documents, is_small

CREATE_EVENT_SUBSCRIPTION = create_statement("event_subscriptions", SUBSCRIPTION)

CREATE_EACH_SUBSCRIPTION = create_each_statement("event_subscriptions", SUBSCRIPTION)
_CREATE_EACH = Each(CREATE_EACH_SUBSCRIPTION, documents)


async def create_event_subscription(store: Store, subscription: EventSubscription) -> None:
    """Insert a subscription, which must have an id. Repeating the call changes nothing."""
    await store.create(
        CREATE_EVENT_SUBSCRIPTION,
        (await offload.run(subscription_document, subscription)).encode(),
        exists=partial(already_subscribed, "subscription.id"),
        each=_CREATE_EACH,
    )


_COLUMNS = SUBSCRIPTION.selection()
_decode_subscription = SUBSCRIPTION.decoder()


_SUBSCRIBE_AS_OF = SUBSCRIPTION.at("subscribe_as_of")


def _by_time(row: PGresult, subscription: EventSubscription) -> Cursor:
    return read_int8(row.get_value(0, _SUBSCRIBE_AS_OF)), subscription.id


def _by_id(_: PGresult, subscription: EventSubscription) -> Cursor:
    return 0, subscription.id


GET_SUBSCRIPTION = f"""
SELECT {_COLUMNS}
FROM wfc.event_subscriptions
WHERE id = $1
"""
GET_EACH_SUBSCRIPTION = f"""
SELECT {SUBSCRIPTION.selection("s")}, asked.n
FROM unnest($1::text[]) WITH ORDINALITY AS asked(id, n), LATERAL (
    SELECT * FROM wfc.event_subscriptions s
    WHERE s.id = asked.id AND {is_small("s.subscription_data")}
    LIMIT 1
) s
"""
_GET_EACH = Each(GET_EACH_SUBSCRIPTION, by_column)


async def get_subscription(store: Store, id_: str) -> EventSubscription:
    """One subscription, open or held."""
    rows = await store.read_together(GET_SUBSCRIPTION, text(id_), each=_GET_EACH)
    if rows.ntuples == 0:
        raise subscription_not_found("id")
    return _decode_subscription(rows)


_IS_EXPIRED = f"external_token IS NOT NULL AND {expired('external_token_expiry')}"


def _first_open(condition: str, order: str, limit: str) -> str:
    """The first open subscriptions with this condition, in a FROM clause. Those without a token and
    those whose token has expired have an index each, in which none of those that are held is."""
    first = f"""
        SELECT * FROM wfc.event_subscriptions
        WHERE {condition}
            AND {{}}
        ORDER BY {order}
        LIMIT {limit}"""
    return f"""(
    ({first.format("external_token IS NULL")}
    ) UNION ALL ({first.format(_IS_EXPIRED)}
    )
) s"""


_FOR_EVENT = """event_name = $1 AND event_key = $2
            AND subscribe_as_of <= coalesce($3::timestamptz, now())"""
_BEHIND = behind("(subscribe_as_of, id)", "$4::timestamptz", "$5::text", least=LEAST_TIME)
_BY_TIME = "subscribe_as_of, id"

GET_SUBSCRIPTIONS = f"""
SELECT {_COLUMNS}
FROM {_first_open(f"{_FOR_EVENT} AND {_BEHIND}", _BY_TIME, "$6")}
ORDER BY {_BY_TIME}
LIMIT $6
"""


async def get_subscriptions(
    store: Store,
    event_name: str,
    event_key: str,
    as_of: Timestamp | None,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[EventSubscription]:
    """Open subscriptions, the oldest first. `as_of` None: the database's clock."""
    rows = store.stream(
        GET_SUBSCRIPTIONS,
        text(event_name),
        text(event_key),
        None if as_of is None else timestamp(as_of),
        *TIME.params(after),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_subscription, _by_time, page_size, page_bytes)


GET_FIRST_OPEN_SUBSCRIPTION = f"""
SELECT {_COLUMNS}
FROM {_first_open(_FOR_EVENT, _BY_TIME, "1")}
ORDER BY {_BY_TIME}
LIMIT 1
"""


async def get_first_open_subscription(
    store: Store, event_name: str, event_key: str, as_of: Timestamp | None
) -> EventSubscription | None:
    """The oldest open subscription, or None. `as_of` None: the database's clock."""
    rows = await store.read(
        GET_FIRST_OPEN_SUBSCRIPTION,
        text(event_name),
        text(event_key),
        None if as_of is None else timestamp(as_of),
    )
    return _decode_subscription(rows) if rows.ntuples else None


_HELD_WITH_TOKEN = f"""external_token = $2
        AND {unexpired_or_endless("external_token_expiry")}
        AND ($3::bigint IS NULL OR external_token_epoch = $3)"""

# No row: there is no such subscription.
TERMINATE_SUBSCRIPTION = f"""
WITH found AS MATERIALIZED (
    SELECT id, $2::text IS NULL OR ({_HELD_WITH_TOKEN}) IS TRUE AS fits
    FROM wfc.event_subscriptions WHERE id = $1 FOR UPDATE
), removed AS (
    DELETE FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM found WHERE fits))
)
SELECT fits FROM found
"""


async def terminate_subscription(
    store: Store, id_: str, token: str | None, epoch: int | None
) -> None:
    """Delete a subscription; if a token is given, only if it is held with that token."""
    rows = await store.write(
        TERMINATE_SUBSCRIPTION,
        text(id_),
        None if token is None else text(token),
        None if epoch is None else integer(epoch),
    )
    if rows.ntuples == 0:
        raise subscription_not_found("id")
    if not read_bool(rows.get_value(0, 0)):
        raise token_mismatch("token")


# A claim that is still held keeps its epoch, and only its expiry changes; otherwise it is a new
# claim. `g`: what a call gives, with the expiry; its epoch is that of a claim that must be held.
_TAKEN = f"""UPDATE wfc.event_subscriptions s
    SET external_token = g.token, external_worker_id = g.worker_id,
        external_token_expiry = g.expiry,
        external_token_epoch = CASE
            WHEN s.external_token = g.token AND coalesce(s.external_worker_id, '') = g.worker_id
                AND s.external_token_epoch > 0
                AND {unexpired_or_endless("s.external_token_expiry")}
            THEN s.external_token_epoch ELSE {NEXT_EPOCH} END
    FROM given g
    WHERE s.id = g.id
        AND (g.expiry IS NULL OR g.expiry > now())
        AND ((g.epoch IS NULL
                AND (s.external_token IS NULL OR {expired("s.external_token_expiry")}))
            OR (s.external_token = g.token AND coalesce(s.external_worker_id, '') = g.worker_id
                AND (g.epoch IS NULL OR (s.external_token_epoch = g.epoch
                    AND {unexpired_or_endless("s.external_token_expiry")}))))"""

# $4 is the expiry, $5 a duration instead.
SET_SUBSCRIPTION_TOKEN = f"""
WITH given AS MATERIALIZED (
    SELECT $1::text AS id, $2::text AS token, $3::text AS worker_id, $6::bigint AS epoch,
        coalesce($4::timestamptz, {expiry_after("$5::bigint")}) AS expiry
), taken AS (
    {_TAKEN}
    RETURNING s.external_token_epoch, s.external_token_expiry
)
SELECT EXISTS (SELECT FROM taken),
    EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1),
    $4 <= now(),
    (SELECT external_token_epoch FROM taken),
    (SELECT external_token_expiry FROM taken)
"""

# Of two calls for one subscription, it does something for one at most.
SET_EACH_SUBSCRIPTION_TOKEN = f"""
WITH given AS MATERIALIZED (
    SELECT g.id, g.token, g.worker_id, g.epoch, g.n,
        coalesce(g.expiry, {expiry_after("g.duration")}) AS expiry
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[], $6::bigint[])
        WITH ORDINALITY AS g(id, token, worker_id, expiry, duration, epoch, n)
)
{_TAKEN}
RETURNING TRUE, TRUE, FALSE, s.external_token_epoch, s.external_token_expiry, g.n
"""
SET_EACH_TOKEN = Each(SET_EACH_SUBSCRIPTION_TOKEN, by_column)


async def set_subscription_token(
    store: Store,
    id_: str,
    token: str,
    worker_id: str,
    *,
    expiry: Timestamp | None,
    duration_ms: int | None,
    epoch: int | None,
) -> SetSubscriptionTokenResponse:
    """Claim a subscription that is open, or held with the same token by the same worker.

    `expiry` or `duration_ms` from now; neither: the claim does not expire. `epoch`: only extend the
    claim that has it. The response says whether it was acquired, and the claim's epoch and expiry.
    """
    row = await store.write_together(
        SET_SUBSCRIPTION_TOKEN,
        text(id_),
        text(token),
        text(worker_id),
        None if expiry is None else timestamp(expiry),
        None if duration_ms is None else integer(duration_ms),
        None if epoch is None else integer(epoch),
        each=SET_EACH_TOKEN,
    )
    taken, exists, expired = (read_bool(row.get_value(0, column)) for column in range(3))
    if not taken and expired:
        raise invalid_field(
            "expiry",
            FieldViolationReason.FIELD_VIOLATION_REASON_TIME_RANGE,
            "is in the past, by the database's clock",
        )
    if not exists:
        raise subscription_not_found("id")
    response = SetSubscriptionTokenResponse(acquired=taken)
    if taken:
        # With an epoch, it is an extension of the claim that has it.
        (metrics.CLAIMS_TAKEN if epoch is None else metrics.CLAIMS_RENEWED).add(("subscription",))
        response.epoch = read_int8(row.get_value(0, 3))
        if (value := row.get_value(0, 4)) is not None:
            read_time(value, response.expiry)
    return response


RENEW_SUBSCRIPTION_TOKEN = f"""
WITH renewed AS (
    UPDATE wfc.event_subscriptions
    SET external_token_expiry = {expiry_after("$4::bigint")}
    WHERE id = $1 AND {_HELD_WITH_TOKEN}
    RETURNING external_token_expiry, external_token_epoch
)
SELECT (SELECT external_token_expiry FROM renewed), (SELECT external_token_epoch FROM renewed),
    EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1)
"""


async def renew_subscription_token(
    store: Store, id_: str, token: str, epoch: int | None, duration_ms: int
) -> RenewSubscriptionTokenResponse:
    """Extend the claim on a subscription by `duration_ms` from now."""
    row = await store.write(
        RENEW_SUBSCRIPTION_TOKEN,
        text(id_),
        text(token),
        None if epoch is None else integer(epoch),
        integer(duration_ms),
    )
    if not read_bool(row.get_value(0, 2)):
        raise subscription_not_found("id")
    expiry = row.get_value(0, 0)
    if expiry is None:
        raise token_mismatch("token")
    metrics.CLAIMS_RENEWED.add(("subscription",))
    response = RenewSubscriptionTokenResponse(epoch=read_int8(row.get_value(0, 1)))
    read_time(expiry, response.expiry)
    return response


CLEAR_SUBSCRIPTION_TOKEN = """
WITH cleared AS (
    UPDATE wfc.event_subscriptions
    SET external_token = NULL, external_worker_id = NULL, external_token_expiry = NULL
    WHERE id = $1 AND external_token = $2 AND ($3::bigint IS NULL OR external_token_epoch = $3)
    RETURNING id
)
SELECT EXISTS (SELECT FROM cleared), EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1)
"""


async def clear_subscription_token(store: Store, id_: str, token: str, epoch: int | None) -> None:
    """Release a subscription that is held with this token; its claim may have expired."""
    row = await store.write(
        CLEAR_SUBSCRIPTION_TOKEN,
        text(id_),
        text(token),
        None if epoch is None else integer(epoch),
    )
    cleared, exists = (read_bool(row.get_value(0, column)) for column in range(2))
    if not exists:
        raise subscription_not_found("id")
    if not cleared:
        raise token_mismatch("token")


# An absent filter is NULL, and the planner, which knows the parameters, removes its condition, and
# the part that can return nothing.
_LISTED = """($1::text IS NULL OR workflow_id = $1)
            AND ($2::text IS NULL OR event_name = $2)
            AND ($3::text IS NULL OR event_key = $3)
            AND ($5::text IS NULL OR id > $5)"""
_IS_HELD = f"""external_token IS NOT NULL
                AND {unexpired_or_endless("external_token_expiry")}"""
LIST_SUBSCRIPTIONS = f"""
SELECT {_COLUMNS}
FROM (
    SELECT * FROM {_first_open(f"NOT $4::boolean AND {_LISTED}", "id", "$6")}
    UNION ALL (
        SELECT * FROM wfc.event_subscriptions
        WHERE {_LISTED}
            AND ($4 IS NULL OR ($4 AND {_IS_HELD}))
        ORDER BY id
        LIMIT $6
    )
) s
ORDER BY id
LIMIT $6
"""


async def list_subscriptions(
    store: Store,
    request: ListSubscriptionsRequest,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[EventSubscription]:
    """Subscriptions, open and held, in the order of their ids."""
    rows = store.stream_once(
        LIST_SUBSCRIPTIONS,
        text(request.workflow_id) if request.workflow_id else None,
        text(request.event_name) if request.event_name else None,
        text(request.event_key) if request.HasField("event_key") else None,
        boolean(request.held) if request.HasField("held") else None,
        None if after is None else text(after[1]),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_subscription, _by_id, page_size, page_bytes)


def subscription_not_found(field: str) -> PersistenceError:
    """The error of a subscription that does not exist; `field`: the request's field."""
    return field_error(
        field, ErrorReason.ERROR_REASON_SUBSCRIPTION_NOT_FOUND, "no subscription has this id"
    )


def token_mismatch(field: str) -> PersistenceError:
    """The error of a subscription that is not held with the given token and epoch."""
    metrics.CLAIMS_LOST.add(("subscription",))
    return field_error(
        field,
        ErrorReason.ERROR_REASON_TOKEN_MISMATCH,
        "the subscription is not held with this token",
    )


def already_subscribed(field: str) -> PersistenceError:
    """The error of a subscription id that is in use with different content."""
    return field_error(
        field,
        ErrorReason.ERROR_REASON_SUBSCRIPTION_ALREADY_EXISTS,
        "a subscription with this id and different content exists",
    )
