WITH calls AS MATERIALIZED (
    SELECT g.lease_id, g.worker_id, g.lease_ms, g.call,
        row_number() OVER (ORDER BY g.call) AS place
    FROM jsonb_to_recordset($1::jsonb) AS g(call int, lease_id text, worker_id text,
        lease_ms bigint)
    WHERE NOT coalesce(nullif(current_setting('wfe.settled', TRUE), '')::jsonb @> to_jsonb(g.call),
        FALSE)
), visible AS MATERIALIZED (
    SELECT i.*, coalesce(i.attempt >= q.max_attempts, FALSE) AS spent
    FROM jsonb_to_recordset($2::jsonb) AS g(name text, floor timestamptz)
    LEFT JOIN wfc.queues q ON q.name = g.name, LATERAL (
        SELECT tid, n, visible_time, attempt, again_time FROM (
            SELECT ctid AS tid, n, visible_time, attempt, again_time FROM wfc.queue_items
            WHERE queue = g.name AND NOT dead
                AND visible_time >= g.floor AND visible_time <= now() AND (blocked_by = '{}' OR NOT EXISTS (
                SELECT FROM wfc.locks l
                WHERE l.resource = ANY (blocked_by) AND l.expiry > now()))
            ORDER BY visible_time, n
            LIMIT (SELECT count(*) FROM calls)
            FOR UPDATE SKIP LOCKED
        ) f LIMIT 100
    ) i
    WHERE g.floor BETWEEN '-infinity' AND 'infinity'
), died AS (
    UPDATE wfc.queue_items i SET dead = TRUE
    FROM visible v
    WHERE i.ctid = v.tid AND v.spent AND v.again_time IS NULL
    RETURNING 1
), claimed AS (
    UPDATE wfc.queue_items i SET
        visible_time = now() + c.lease_ms * interval '1 millisecond',
        lease_id = c.lease_id, lease_worker_id = c.worker_id, lease_epoch = nextval('wfc.claim_epochs'),
        attempt = CASE WHEN v.spent THEN 1 ELSE least(i.attempt, 2147483646) + 1 END,
        again_time = NULL
    FROM (
        SELECT tid, visible_time, spent, row_number() OVER (ORDER BY visible_time, n) AS place
        FROM visible WHERE NOT spent OR again_time IS NOT NULL
    ) v JOIN calls c ON c.place = v.place
    WHERE i.ctid = v.tid
    RETURNING i.queue, i.id, i.payload, v.visible_time, i.blocked_by,
        i.n, i.visible_time AS lease_expiry, i.lease_epoch, i.attempt, c.call
)
SELECT queue, id, payload, visible_time,
        CASE WHEN blocked_by <> '{}' THEN to_jsonb(blocked_by) END, n, lease_expiry, lease_epoch, attempt, call, died.count
FROM (SELECT count(*) FROM died) AS died LEFT JOIN claimed ON TRUE;
