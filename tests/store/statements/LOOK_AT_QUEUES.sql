SELECT g.name, ready.count,
    (extract(epoch FROM least(coming.at, locks.expiry) - now()) * 1000)::bigint, locks.resources
FROM unnest($1::text[], $3::timestamptz[]) AS g(name, floor)
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.queue_items
        WHERE queue = g.name AND NOT dead
            AND visible_time >= g.floor AND visible_time <= now() AND (blocked_by = '{}' OR NOT EXISTS (
                SELECT FROM wfc.locks l
                WHERE l.resource = ANY (blocked_by) AND l.expiry > now()))
        ORDER BY visible_time, n
        LIMIT $2
    ) i
) ready
LEFT JOIN LATERAL (
    SELECT visible_time AS at FROM wfc.queue_items
    WHERE queue = g.name AND NOT dead AND visible_time > now()
    ORDER BY visible_time, n
    LIMIT 1
) coming ON TRUE
CROSS JOIN LATERAL (
    SELECT min(l.expiry) AS expiry, jsonb_agg(DISTINCT l.resource) AS resources FROM (
        SELECT blocked_by FROM wfc.queue_items
        WHERE queue = g.name AND NOT dead
            AND visible_time >= g.floor AND visible_time <= now()
        ORDER BY visible_time, n
        LIMIT $2
    ) i, unnest(i.blocked_by) AS b(resource), wfc.locks l
    WHERE l.resource = b.resource AND l.expiry > now()
) locks
WHERE ready.count > 0 OR coming.at IS NOT NULL OR locks.expiry IS NOT NULL;
