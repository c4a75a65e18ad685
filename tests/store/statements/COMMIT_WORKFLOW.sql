WITH stored AS MATERIALIZED (
    SELECT id, revision FROM wfc.workflows WHERE id = $1
), given AS MATERIALIZED (
    SELECT w.* FROM jsonb_to_record($2::jsonb) AS w(
        id text, name text, root_workflow_id text, definition_id text, version int,
        description text, reference text, status text, data jsonb, next_execution bigint,
        create_time timestamptz, complete_time timestamptz, extension_attributes jsonb, execution_pointers jsonb)
), subscriptions AS MATERIALIZED (
    SELECT s.*, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($4::jsonb) AS documents(document),
        jsonb_to_record(document) AS s(
            id text, workflow_id text, step_id int, execution_pointer_id text, event_name text,
            event_key text, subscribe_as_of timestamptz, subscription_data jsonb,
            external_token text, external_worker_id text, external_token_expiry timestamptz)
), existing AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT s.content_hash FROM subscriptions s WHERE s.id = e.id) AS same
    FROM wfc.event_subscriptions e WHERE e.id = ANY (ARRAY (SELECT id FROM subscriptions))
), repeated AS MATERIALIZED (
    SELECT revision, content_hash = $6::bytea AS same FROM wfc.requests
    WHERE workflow_id = $1 AND request_id = $5::uuid
), locked_workflow AS MATERIALIZED (
    SELECT FROM wfc.workflows WHERE id = $1 FOR NO KEY UPDATE
), claims AS MATERIALIZED (
    SELECT c.* FROM jsonb_to_recordset($7::jsonb -> 'claims')
        AS c(n bigint, id text, token text, epoch bigint)
), terminating AS MATERIALIZED (
    SELECT t.id, t.n - 1 AS n
    FROM jsonb_array_elements_text($7::jsonb -> 'terminated') WITH ORDINALITY AS t(id, n)
), locked_subscriptions AS MATERIALIZED (
    SELECT id, external_token, external_token_epoch,
        (external_token_expiry IS NULL OR external_token_expiry > now()) AS unexpired
    FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM claims UNION SELECT id FROM terminating))
        AND (SELECT count(*) FROM locked_workflow) >= 0
    ORDER BY id FOR UPDATE
), events AS MATERIALIZED (
    SELECT e.*, n - 1 AS n, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($7::jsonb -> 'events') WITH ORDINALITY AS documents(document, n),
        jsonb_to_record(document) AS e(
            id text, event_name text, event_key text, event_data jsonb, event_time timestamptz,
            is_processed boolean)
), unawaited AS MATERIALIZED (
    SELECT e.id FROM events e
    WHERE ($7::jsonb -> 'skip_unawaited')::boolean
        AND NOT EXISTS (SELECT FROM subscriptions s
            WHERE s.event_name = e.event_name AND s.event_key = e.event_key)
        AND NOT EXISTS (SELECT FROM wfc.event_subscriptions s
            WHERE s.event_name = e.event_name AND s.event_key = e.event_key)
), existing_events AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT g.content_hash FROM events g WHERE g.id = e.id) AS same
    FROM wfc.events e WHERE e.id = ANY (ARRAY (SELECT id FROM events))
), processing AS MATERIALIZED (
    SELECT p.id, p.n - 1 AS n
    FROM jsonb_array_elements_text($7::jsonb -> 'processed') WITH ORDINALITY AS p(id, n)
), locked_events AS MATERIALIZED (
    SELECT id FROM wfc.events WHERE id = ANY (ARRAY (SELECT id FROM processing))
        AND (SELECT count(*) FROM locked_subscriptions) >= 0
    ORDER BY id FOR NO KEY UPDATE
), leases AS MATERIALIZED (
    SELECT l.* FROM jsonb_to_recordset($7::jsonb -> 'leases')
        AS l(n bigint, completes boolean, id bigint, revision bigint, lease_id text)
), scheduling AS MATERIALIZED (
    SELECT s.*, c.id
    FROM jsonb_to_recordset($7::jsonb -> 'commands')
        AS s(command_name text, data text, execute_time bigint)
    LEFT JOIN LATERAL (
        SELECT id FROM wfc.scheduled_commands
        WHERE command_name = s.command_name AND data = s.data LIMIT 1
    ) c ON TRUE
), locked_commands AS MATERIALIZED (
    SELECT id, revision, lease_id, lease_expiry > now() AS unexpired
    FROM wfc.scheduled_commands
    WHERE id = ANY (ARRAY (SELECT id FROM leases UNION SELECT id FROM scheduling))
        AND (SELECT count(*) FROM locked_events) >= 0
    ORDER BY id FOR UPDATE
), conditions AS MATERIALIZED (
    SELECT (SELECT min(n) FROM claims g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s
            WHERE s.id = g.id)) AS unknown_claim,
        (SELECT min(n) FROM claims g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s
            WHERE s.id = g.id AND s.external_token = g.token AND s.unexpired
                AND (g.epoch IS NULL OR g.epoch = s.external_token_epoch))) AS lost_claim,
        (SELECT min(n) FROM leases g WHERE NOT EXISTS (
            SELECT FROM locked_commands c
            WHERE c.id = g.id AND c.lease_id = g.lease_id
                AND (g.completes OR c.unexpired))) AS lost_lease,
        (SELECT min(n) FROM terminating g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s WHERE s.id = g.id)) AS unknown_subscription,
        (SELECT min(n) FROM processing g WHERE NOT EXISTS (
            SELECT FROM locked_events e WHERE e.id = g.id)) AS unknown_event,
        (SELECT min(n) FROM events g WHERE EXISTS (
            SELECT FROM existing_events e WHERE e.id = g.id AND NOT e.same)) AS existing_event
    WHERE (SELECT count(*) FROM locked_commands) >= 0
), updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        root_workflow_id = g.root_workflow_id,
        definition_id = g.definition_id,
        version = g.version,
        description = g.description,
        reference = g.reference,
        status = g.status,
        data = g.data -> 0,
        next_execution = g.next_execution,
        create_time = g.create_time,
        complete_time = g.complete_time,
        extension_attributes = coalesce(g.extension_attributes, w.extension_attributes),
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision AND ($3::bigint IS NULL OR w.revision = $3)
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
        AND NOT EXISTS (SELECT FROM repeated)
        AND EXISTS (SELECT FROM conditions c WHERE num_nonnulls(c.unknown_claim, c.lost_claim, c.lost_lease, c.unknown_subscription, c.unknown_event, c.existing_event) = 0)
    RETURNING w.id, w.revision, w.status, w.next_execution
), pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes) AS MATERIALIZED (
    SELECT updated.id, p.ordinal,
        p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
    FROM updated, given, jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
), removed AS (
    DELETE FROM wfc.execution_pointers p USING updated
    WHERE p.workflow_id = updated.id AND NOT EXISTS (SELECT FROM pointers g WHERE g.id = p.id)
), written AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
    SELECT * FROM pointers WHERE id IN (
        SELECT id FROM (
            SELECT ordinal,
                id, step_id, active, status, sleep_until, persistence_data::text, start_time,
                end_time, event_name, event_key, event_published, event_data::text, step_name,
                retry_count, children, context_item::text, predecessor_id, outcome::text, scope,
                extension_attributes::text
            FROM pointers
            EXCEPT
            SELECT ordinal,
                id, step_id, active, status, sleep_until, persistence_data::text, start_time,
                end_time, event_name, event_key, event_published, event_data::text, step_name,
                retry_count, children, context_item::text, predecessor_id, outcome::text, scope,
                extension_attributes::text
            FROM wfc.execution_pointers WHERE workflow_id = (SELECT $1::text)
        ) AS changed
    )
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        ordinal = excluded.ordinal,
        step_id = excluded.step_id,
        active = excluded.active,
        status = excluded.status,
        sleep_until = excluded.sleep_until,
        persistence_data = excluded.persistence_data,
        start_time = excluded.start_time,
        end_time = excluded.end_time,
        event_name = excluded.event_name,
        event_key = excluded.event_key,
        event_published = excluded.event_published,
        event_data = excluded.event_data,
        step_name = excluded.step_name,
        retry_count = excluded.retry_count,
        children = excluded.children,
        context_item = excluded.context_item,
        predecessor_id = excluded.predecessor_id,
        outcome = excluded.outcome,
        scope = excluded.scope,
        extension_attributes = excluded.extension_attributes
), subscribed AS (
    INSERT INTO wfc.event_subscriptions (
        id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry, content_hash)
    SELECT
        s.id, s.workflow_id, s.step_id, s.execution_pointer_id, s.event_name, s.event_key,
        s.subscribe_as_of, s.subscription_data -> 0, s.external_token, s.external_worker_id,
        s.external_token_expiry,
        s.content_hash
    FROM updated, subscriptions s
    WHERE NOT EXISTS (SELECT FROM existing e WHERE e.id = s.id)
    ORDER BY s.id
    RETURNING 1
), terminated AS (
    DELETE FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT t.id FROM updated, terminating t))
), created_events AS (
    INSERT INTO wfc.events
        (id, event_name, event_key, event_data, event_time, is_processed, content_hash)
    SELECT e.id, e.event_name, e.event_key, e.event_data -> 0, e.event_time,
        (e.is_processed OR e.id IN (SELECT id FROM unawaited)),
        e.content_hash
    FROM updated, events e
    WHERE NOT EXISTS (SELECT FROM existing_events x WHERE x.id = e.id)
        AND (SELECT count(*) FROM subscribed) >= 0
    ORDER BY e.id
    RETURNING id, is_processed
), processed AS (
    UPDATE wfc.events SET is_processed = TRUE
    WHERE id = ANY (ARRAY (SELECT p.id FROM updated, processing p))
), logged AS (
    INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
    SELECT e.error_time, e.workflow_id, e.execution_pointer_id, e.message
    FROM updated, ROWS FROM (jsonb_to_recordset($7::jsonb -> 'errors') AS (
        error_time timestamptz, workflow_id text, execution_pointer_id text, message text
    )) WITH ORDINALITY AS e(error_time, workflow_id, execution_pointer_id, message, n)
    ORDER BY e.n
), completing AS MATERIALIZED (
    SELECT c.id, c.revision = g.revision AS unchanged
    FROM updated, leases g JOIN locked_commands c ON c.id = g.id
    WHERE g.completes
), rescheduled AS (
    UPDATE wfc.scheduled_commands c SET
        execute_time = s.execute_time,
        lease_id = CASE WHEN x.id IS NULL THEN c.lease_id END,
        lease_worker_id = CASE WHEN x.id IS NULL THEN c.lease_worker_id END,
        lease_expiry = CASE WHEN x.id IS NULL THEN c.lease_expiry END
    FROM updated, scheduling s LEFT JOIN completing x ON x.id = s.id
    WHERE c.id = s.id AND c.id = ANY (ARRAY (SELECT id FROM scheduling))
), scheduled AS (
    INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
    SELECT s.command_name, s.data, s.execute_time FROM updated, scheduling s
    WHERE NOT EXISTS (SELECT FROM locked_commands c WHERE c.id = s.id)
        AND (SELECT count(*) FROM created_events) >= 0
    ORDER BY s.command_name, s.data
    RETURNING 1
), completed AS (
    DELETE FROM wfc.scheduled_commands WHERE id = ANY (ARRAY (
        SELECT id FROM completing WHERE unchanged
        EXCEPT SELECT id FROM scheduling))
), kept AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (
        SELECT id FROM completing WHERE NOT unchanged
        EXCEPT SELECT id FROM scheduling))
), remembered AS (
    INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision)
    SELECT updated.id, $5::uuid, $6::bytea, updated.revision FROM updated
    WHERE $5::uuid IS NOT NULL
), forgotten AS (
    DELETE FROM wfc.requests WHERE ctid = ANY (ARRAY (
        SELECT r.ctid FROM updated, LATERAL (
            SELECT ctid FROM wfc.requests
            WHERE create_time < now() - interval '3600 seconds'
            ORDER BY create_time LIMIT 2 FOR UPDATE SKIP LOCKED
        ) r WHERE $5::uuid IS NOT NULL))
)
SELECT (SELECT revision FROM updated) AS revision,
    (SELECT revision FROM stored) AS stored_revision,
    (SELECT min(id) FROM existing WHERE NOT same) AS clashing_subscription,
    (SELECT revision FROM repeated) AS repeated_revision,
    (SELECT same FROM repeated) AS repeated_same,
    c.unknown_claim AS unknown_claim,
    c.lost_claim AS lost_claim,
    c.lost_lease AS lost_lease,
    c.unknown_subscription AS unknown_subscription,
    c.unknown_event AS unknown_event,
    c.existing_event AS existing_event
FROM conditions c;
