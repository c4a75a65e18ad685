WITH given (n, queue, id, payload, visible_time, blocked_by) AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers'),
        g.queue, g.id, g.payload -> 0, coalesce(g.visible_time, now()),
        coalesce(g.blocked_by, '{}'::text[])
    FROM jsonb_to_recordset($1::jsonb) AS g(
        queue text, id text, payload jsonb, visible_time timestamptz, blocked_by text[]
    )
), locked AS MATERIALIZED (
    SELECT i.n, g.queue, g.id
    FROM (SELECT queue, id FROM given ORDER BY queue, id) g, LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id FOR UPDATE
    ) i
), merged AS (
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
    FROM given g JOIN locked l ON l.queue = g.queue AND l.id = g.id
    WHERE i.n = l.n AND i.n = ANY (ARRAY (SELECT n FROM locked))
)
INSERT INTO wfc.queue_items (n, queue, id, payload, visible_time, blocked_by)
SELECT n, queue, id, payload, visible_time, blocked_by FROM given g
WHERE NOT EXISTS (SELECT FROM locked l WHERE l.queue = g.queue AND l.id = g.id)
ORDER BY queue, id;
