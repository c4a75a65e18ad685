WITH RECURSIVE used (name) AS (
    (SELECT queue FROM wfc.queue_items WHERE $1::jsonb IS NULL AND queue > coalesce($2, '')
        ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM wfc.queue_items WHERE queue > used.name ORDER BY queue LIMIT 1)
    FROM used WHERE used.name IS NOT NULL
), named AS (
    SELECT name FROM used WHERE name IS NOT NULL
    UNION
    SELECT name FROM wfc.queues WHERE $1::jsonb IS NULL
    UNION
    SELECT name COLLATE "C" FROM jsonb_array_elements_text($1::jsonb) AS given(name)
), page AS (
    SELECT name FROM named WHERE name > coalesce($2::text, '') ORDER BY name LIMIT $3
)
SELECT p.name, coalesce(q.kind, 'Plain'), coalesce(q.max_attempts, 0),
    i.waiting, i.delayed, i.leased, i.dead,
    floor(extract(epoch FROM now() - i.oldest) * 1000000)::bigint
FROM page p
LEFT JOIN wfc.queues q ON q.name = p.name
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 'Waiting') AS waiting,
        count(*) FILTER (WHERE state = 'Delayed') AS delayed,
        count(*) FILTER (WHERE state = 'Leased') AS leased,
        count(*) FILTER (WHERE state = 'Dead') AS dead,
        min(visible_time) FILTER (WHERE state = 'Waiting') AS oldest
    FROM (
        SELECT visible_time, CASE WHEN dead THEN 'Dead' WHEN visible_time <= now() THEN 'Waiting'
        WHEN lease_id IS NULL THEN 'Delayed' ELSE 'Leased' END AS state FROM wfc.queue_items WHERE queue = p.name
    ) items
) i
ORDER BY p.name;
