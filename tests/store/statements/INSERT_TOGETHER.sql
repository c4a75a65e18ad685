INSERT INTO wfc.queue_items (n, queue, id, payload, visible_time, blocked_by)
SELECT n, queue, id, payload, visible_time, blocked_by FROM (
    SELECT nextval('wfc.queue_item_numbers') AS n,
        g.queue, g.id, g.payload -> 0, coalesce(g.visible_time, now()),
        coalesce(g.blocked_by, '{}'::text[])
    FROM (SELECT CASE WHEN $2::boolean THEN set_config('lock_timeout', '100ms', TRUE) END OFFSET 0) AS briefly,
    jsonb_to_recordset($1::jsonb) AS g(
        queue text, id text, payload jsonb, visible_time timestamptz, blocked_by text[]
    )
) AS g(n, queue, id, payload, visible_time, blocked_by)
ORDER BY queue, id
ON CONFLICT (queue, id) DO NOTHING
RETURNING queue, id;
