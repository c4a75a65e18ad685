WITH wanted AS MATERIALIZED (
    SELECT g.name, g.floor, q.max_attempts
    FROM unnest((SELECT $1::text[]), (SELECT $7::timestamptz[])) AS g(name, floor)
    LEFT JOIN wfc.queues q ON q.name = g.name
    WHERE coalesce(current_setting('wfe.settled', TRUE), '') <> 'false'
        AND g.floor BETWEEN '-infinity' AND 'infinity'
), visible AS MATERIALIZED (
    SELECT i.*, coalesce(i.attempt >= w.max_attempts, FALSE) AS spent
    FROM wanted w, LATERAL (
        SELECT * FROM (
            SELECT ctid AS tid, n, visible_time, attempt, again_time, octet_length(queue) + octet_length(id)
                + coalesce(octet_length(payload::text), 0)
                + octet_length(array_to_string(blocked_by, '')) + 4 * cardinality(blocked_by)
                + 160 AS bytes
            FROM wfc.queue_items
            WHERE queue = w.name AND NOT dead
                AND visible_time >= w.floor AND visible_time <= now() AND (blocked_by = '{}' OR NOT EXISTS (
                SELECT FROM wfc.locks l
                WHERE l.resource = ANY (blocked_by) AND l.expiry > now()))
            ORDER BY visible_time, n
            LIMIT (SELECT $2::int)
            FOR UPDATE SKIP LOCKED
        ) f LIMIT 1000
    ) i
), died AS (
    UPDATE wfc.queue_items i SET dead = TRUE
    FROM visible v
    WHERE i.ctid = v.tid AND v.spent AND v.again_time IS NULL
    RETURNING 1
), fitting AS MATERIALIZED (
    SELECT tid, visible_time, spent FROM (
        SELECT *, sum(bytes) OVER in_order AS bytes_so_far, row_number() OVER in_order AS place
        FROM visible WHERE NOT spent OR again_time IS NOT NULL
        WINDOW in_order AS (ORDER BY visible_time, n)
    ) v WHERE place <= $2 AND (bytes_so_far <= $6 OR place = 1)
), claimed AS (
    UPDATE wfc.queue_items i SET
        visible_time = now() + $3 * interval '1 millisecond',
        lease_id = $4, lease_worker_id = $5, lease_epoch = nextval('wfc.claim_epochs'),
        attempt = CASE WHEN f.spent THEN 1 ELSE least(i.attempt, 2147483646) + 1 END,
        again_time = NULL
    FROM fitting f
    WHERE i.ctid = f.tid
    RETURNING i.queue, i.id, i.payload, f.visible_time, i.blocked_by,
        i.n, i.visible_time AS lease_expiry, i.lease_epoch, i.attempt
)
SELECT queue, id, payload, visible_time,
        CASE WHEN blocked_by <> '{}' THEN to_jsonb(blocked_by) END, n, lease_expiry, lease_epoch, attempt, died.count
FROM (SELECT count(*) FROM died) AS died LEFT JOIN claimed ON TRUE
ORDER BY visible_time, n;
