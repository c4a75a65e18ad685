WITH wanted AS MATERIALIZED (
    SELECT name FROM unnest($1::text[]) AS g(name)
), coming AS (
    SELECT i.visible_time AS at FROM wanted w, LATERAL (
        SELECT visible_time FROM wfc.queue_items
        WHERE queue = w.name AND NOT dead AND visible_time > now()
        ORDER BY visible_time, n
        LIMIT 1
    ) i
), locks AS MATERIALIZED (
    SELECT DISTINCT l.resource, l.expiry FROM wanted w, LATERAL (
        SELECT blocked_by FROM wfc.queue_items
        WHERE queue = w.name AND NOT dead AND visible_time <= now()
        ORDER BY visible_time, n
        LIMIT 100
    ) i, unnest(i.blocked_by) AS b(resource), wfc.locks l
    WHERE l.resource = b.resource AND l.expiry > now()
)
SELECT (extract(epoch FROM least(
        (SELECT min(at) FROM coming), (SELECT min(expiry) FROM locks)) - now()) * 1000)::bigint,
    (SELECT coalesce(jsonb_agg(resource), '[]') FROM locks);
