WITH enqueuing (at, queue, id, payload, visible_time, blocked_by) AS MATERIALIZED (
    SELECT g.at,
        g.queue, g.id, g.payload -> 0, coalesce(g.visible_time, now()),
        coalesce(g.blocked_by, '{}'::text[])
    FROM ROWS FROM (jsonb_to_recordset($2::jsonb) AS (
        queue text, id text, payload jsonb, visible_time timestamptz, blocked_by text[]
    )) WITH ORDINALITY AS g(queue, id, payload, visible_time, blocked_by, at)
), locked_items AS MATERIALIZED (
    SELECT n, queue, id, lease_id, dead, attempt, again_time FROM wfc.queue_items
    WHERE n = ANY (ARRAY (
        SELECT i.n FROM enqueuing g, LATERAL (
            SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id LIMIT 1
        ) i))
    ORDER BY queue || '', id || '' FOR UPDATE
), held_locks AS MATERIALIZED (
    SELECT h.* FROM jsonb_to_recordset($3::jsonb) AS h(i bigint, n bigint, token text)
), locked_locks AS MATERIALIZED (
    SELECT n, token FROM wfc.locks
    WHERE n = ANY (ARRAY (SELECT n FROM held_locks)) AND expiry > now()
        AND (SELECT count(*) FROM locked_items) >= 0
    ORDER BY resource FOR SHARE
), given AS MATERIALIZED (
    SELECT w.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM (VALUES ($1::jsonb)) AS d(document),
        jsonb_to_record(d.document) AS w(
        id text, name text, root_workflow_id text, definition_id text, version int,
        description text, reference text, status text, data jsonb, next_execution bigint,
        create_time timestamptz, complete_time timestamptz, extension_attributes jsonb, execution_pointers jsonb)
), created AS (
    INSERT INTO wfc.workflows (
        id, name, root_workflow_id, definition_id, version, description, reference, status, data,
        next_execution, create_time, complete_time, extension_attributes, content_hash)
    SELECT g.id, g.name, g.root_workflow_id, g.definition_id, g.version, g.description, g.reference,
        g.status, g.data -> 0, g.next_execution, g.create_time, g.complete_time,
        coalesce(g.extension_attributes, '{}'),
        g.content_hash
    FROM given g
    WHERE (SELECT min(i) FROM held_locks g WHERE NOT EXISTS (
            SELECT FROM locked_locks l WHERE l.n = g.n AND l.token = g.token)) IS NULL
    ON CONFLICT DO NOTHING
    RETURNING id, first_revision
), pointers AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
    SELECT created.id, p.ordinal,
        p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
    FROM created JOIN given ON given.id = created.id,
        jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
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
        SELECT l.n FROM created, locked_items l))
), fresh_items AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT queue, id, payload, visible_time, blocked_by FROM enqueuing g
        WHERE EXISTS (SELECT FROM created)
            AND NOT EXISTS (SELECT FROM locked_items l WHERE l.queue = g.queue AND l.id = g.id)
        ORDER BY at
    ) g
), enqueued AS (
    INSERT INTO wfc.queue_items (n, queue, id, payload, visible_time, blocked_by)
    SELECT n, queue, id, payload, visible_time, blocked_by FROM fresh_items
    WHERE (SELECT count(*) FROM created) >= 0
    ORDER BY queue, id
)
SELECT EXISTS (SELECT FROM created
        WHERE first_revision > pg_sequence_last_value('wfc.revision_floor')),
    (SELECT coalesce(w.content_hash = g.content_hash, FALSE)
        FROM wfc.workflows w JOIN given g ON w.id = g.id),
    EXISTS (SELECT FROM wfc.workflows w JOIN given g ON w.name = g.name AND w.id <> g.id),
    coalesce((SELECT first_revision FROM created),
        (SELECT w.first_revision FROM wfc.workflows w JOIN given g ON w.id = g.id)),
    (SELECT min(i) FROM held_locks g WHERE NOT EXISTS (
            SELECT FROM locked_locks l WHERE l.n = g.n AND l.token = g.token));
