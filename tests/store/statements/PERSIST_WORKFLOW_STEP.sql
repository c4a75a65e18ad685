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
    SELECT revision, substr(content_hash, 1, 32) = $6::bytea AS same,
        nullif(substr(content_hash, 33), '') AS unconfirmed FROM wfc.requests
    WHERE workflow_id = $1 AND request_id = $5::uuid
), locked_workflow AS MATERIALIZED (
    SELECT FROM wfc.workflows WHERE id = $1 FOR NO KEY UPDATE
), settling AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($7::jsonb -> 'acknowledge')
        AS g(at int, n bigint, lease_id text, act text)
), enqueuing (at, queue, id, payload, visible_time, blocked_by) AS MATERIALIZED (
    SELECT g.at,
        g.queue, g.id, g.payload -> 0, coalesce(g.visible_time, now()),
        coalesce(g.blocked_by, '{}'::text[])
    FROM ROWS FROM (jsonb_to_recordset($7::jsonb -> 'enqueue') AS (
        queue text, id text, payload jsonb, visible_time timestamptz, blocked_by text[]
    )) WITH ORDINALITY AS g(queue, id, payload, visible_time, blocked_by, at)
), locked_items AS MATERIALIZED (
    SELECT n, queue, id, lease_id, dead, attempt, again_time FROM wfc.queue_items
    WHERE n = ANY (ARRAY (
        SELECT n FROM settling UNION
        SELECT i.n FROM enqueuing g, LATERAL (
            SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id LIMIT 1
        ) i))
        AND (SELECT count(*) FROM locked_workflow) >= 0
    ORDER BY queue || '', id || '' FOR UPDATE
), held_locks AS MATERIALIZED (
    SELECT h.* FROM jsonb_to_recordset($7::jsonb -> 'locks') AS h(i bigint, n bigint, token text)
), locked_locks AS MATERIALIZED (
    SELECT n, token FROM wfc.locks
    WHERE n = ANY (ARRAY (SELECT n FROM held_locks)) AND expiry > now()
        AND (SELECT count(*) FROM locked_items) >= 0
    ORDER BY resource FOR SHARE
), conditions AS MATERIALIZED (
    SELECT (SELECT min(i) FROM held_locks g WHERE NOT EXISTS (
            SELECT FROM locked_locks l WHERE l.n = g.n AND l.token = g.token)) AS lost_lock,
        (SELECT min(at) FROM settling g WHERE NOT EXISTS (
            SELECT FROM locked_items i WHERE i.n = g.n AND i.lease_id = g.lease_id)) AS lost_item
    WHERE (SELECT count(*) FROM locked_locks) >= 0
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
        AND EXISTS (SELECT FROM conditions c WHERE num_nonnulls(c.lost_lock, c.lost_item) = 0)
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
), judged AS MATERIALIZED (
    SELECT h.n, h.queue, h.attempt, g.at, g.act,
        g.act = 'acknowledge' OR NOT CASE q.kind
            WHEN 'Workflow' THEN CASE WHEN h.id = $1
                THEN EXISTS (SELECT FROM updated WHERE status = 'Runnable'
                    AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint)
                ELSE coalesce((
                SELECT status = 'Runnable'
                    AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint
                FROM wfc.workflows WHERE id = h.id COLLATE "default"), FALSE) END
            WHEN 'Event' THEN coalesce((
                SELECT NOT is_processed FROM wfc.events WHERE id = h.id COLLATE "default"), FALSE)
            ELSE FALSE END AS done,
        h.dead OR coalesce(h.attempt >= q.max_attempts, FALSE) AS spent,
        least(60, 2 ^ least(h.attempt - 1, 10)) * interval '1 second' AS delay,
        least(h.again_time, e.visible_time) AS again_time,
        e.at IS NOT NULL AS is_enqueued, e.payload, e.blocked_by
    FROM updated, settling g JOIN locked_items h ON h.n = g.n
    LEFT JOIN wfc.queues q ON q.name = h.queue
    LEFT JOIN enqueuing e ON e.queue = h.queue AND e.id = h.id
), removed_items AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM judged WHERE done AND again_time IS NULL))
), kept_items AS (
    UPDATE wfc.queue_items i SET
        payload = CASE WHEN j.is_enqueued THEN j.payload ELSE i.payload END,
        blocked_by = CASE WHEN j.is_enqueued THEN j.blocked_by ELSE i.blocked_by END,
        visible_time = CASE WHEN j.done THEN j.again_time
            ELSE least(now() + j.delay, j.again_time) END,
        dead = j.spent AND j.again_time IS NULL,
        attempt = CASE WHEN j.done OR (j.spent AND j.again_time IS NOT NULL)
            THEN 0 ELSE j.attempt END,
        again_time = NULL, lease_id = NULL, lease_worker_id = NULL
    FROM judged j
    WHERE i.n = j.n AND i.n = ANY (ARRAY (SELECT n FROM judged WHERE NOT (done AND again_time IS NULL)))
), merged_items AS (
    UPDATE wfc.queue_items i SET
        payload = g.payload,
        blocked_by = g.blocked_by,
        visible_time = CASE
            WHEN i.dead THEN g.visible_time
            WHEN i.lease_id IS NOT NULL AND i.visible_time > now() THEN i.visible_time
            ELSE least(i.visible_time, g.visible_time) END,
        again_time = CASE WHEN i.lease_id IS NOT NULL AND NOT i.dead
            THEN least(i.again_time, g.visible_time) END,
        attempt = CASE WHEN i.dead THEN 0 ELSE i.attempt END,
        lease_id = CASE WHEN NOT i.dead THEN i.lease_id END,
        lease_worker_id = CASE WHEN NOT i.dead THEN i.lease_worker_id END,
        dead = FALSE
    FROM enqueuing g JOIN locked_items k ON k.queue = g.queue AND k.id = g.id
    WHERE i.n = k.n AND i.n = ANY (ARRAY (
        SELECT l.n FROM updated, locked_items l
        WHERE l.n NOT IN (SELECT n FROM settling)))
), fresh_items AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT queue, id, payload, visible_time, blocked_by FROM enqueuing g
        WHERE EXISTS (SELECT FROM updated)
            AND NOT EXISTS (SELECT FROM locked_items l WHERE l.queue = g.queue AND l.id = g.id)
        ORDER BY at
    ) g
), enqueued AS (
    INSERT INTO wfc.queue_items (n, queue, id, payload, visible_time, blocked_by)
    SELECT n, queue, id, payload, visible_time, blocked_by FROM fresh_items
    WHERE (SELECT count(*) FROM subscribed) >= 0
    ORDER BY queue, id
), published AS (
    INSERT INTO wfc.lifecycle_events (type, workflow_id, definition_id, version, reference, event_time, step_id, step_name,
        message)
    SELECT e.type, e.workflow_id, e.definition_id, e.version, e.reference, e.event_time, e.step_id,
        e.step_name, e.message
    FROM updated, ROWS FROM (jsonb_to_recordset($7::jsonb -> 'publish') AS (
        type text, workflow_id text, definition_id text, version int, reference text,
        event_time timestamptz, step_id int, step_name text, message text
    )) WITH ORDINALITY AS e(type, workflow_id, definition_id, version, reference, event_time, step_id, step_name,
        message, i)
    ORDER BY e.i
), remembered AS (
    INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision)
    SELECT updated.id, $5::uuid, $6::bytea || coalesce((SELECT string_agg(int4send(at), '' ORDER BY at)
        FROM judged WHERE act = 'confirm' AND NOT done), ''), updated.revision FROM updated
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
    NULL AS unknown_claim,
    NULL AS lost_claim,
    NULL AS lost_lease,
    NULL AS unknown_subscription,
    NULL AS unknown_event,
    NULL AS existing_event,
    NULL AS unknown_pointer,
    c.lost_lock AS lost_lock,
    NULL AS header_too_large,
    c.lost_item AS lost_item,
    (SELECT string_agg(int4send(at), '' ORDER BY at)
        FROM judged WHERE act = 'confirm' AND NOT done) AS unconfirmed,
    (SELECT jsonb_agg(queue) FROM judged WHERE NOT (done AND again_time IS NULL)) AS returned_to,
    (SELECT unconfirmed FROM repeated) AS repeated_unconfirmed
FROM conditions c;
