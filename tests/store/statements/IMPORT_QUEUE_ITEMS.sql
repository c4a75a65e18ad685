WITH given AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int, dead boolean, attempt int,
            queue text, id text, payload jsonb, visible_time timestamptz, blocked_by text[])
        ORDER BY g.at
    ) g
), created AS (
    INSERT INTO wfc.queue_items (n, dead, attempt, queue, id, payload, visible_time, blocked_by)
    SELECT g.n, coalesce(g.dead, FALSE), coalesce(g.attempt, 0),
        g.queue, g.id, g.payload -> 0, coalesce(g.visible_time, now()),
        coalesce(g.blocked_by, '{}'::text[])
    FROM given g
    ORDER BY g.queue, g.id
    ON CONFLICT DO NOTHING
    RETURNING n
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT ((g.payload -> 0)::text, (coalesce(g.visible_time, now())), (coalesce(g.blocked_by, '{}'::text[])), coalesce(g.dead, FALSE), coalesce(g.attempt, 0), TRUE) IS NOT DISTINCT FROM (s.payload::text, s.visible_time, s.blocked_by, s.dead, s.attempt, TRUE) AS same
    FROM wfc.queue_items s WHERE s.queue = g.queue AND s.id = g.id LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.n = g.n);
