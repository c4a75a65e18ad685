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
), given AS MATERIALIZED (
    SELECT g.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM (VALUES ($1::jsonb)) AS d(document),
        jsonb_to_record(d.document) AS g(
        id text, event_name text, event_key text, event_data jsonb, event_time timestamptz,
        is_processed boolean)
), created AS (
    INSERT INTO wfc.events (
        id, event_name, event_key, event_data, event_time, is_processed,
        content_hash)
    SELECT g.id, g.event_name, g.event_key, g.event_data -> 0, g.event_time, g.is_processed,
        g.content_hash
    FROM given g
    WHERE (SELECT count(*) FROM locked_items) >= 0
    ON CONFLICT (id) DO NOTHING
    RETURNING id, content_hash
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
SELECT EXISTS (SELECT FROM created),
    (SELECT coalesce(e.content_hash = g.content_hash, FALSE)
        FROM wfc.events e JOIN given g ON e.id = g.id);
