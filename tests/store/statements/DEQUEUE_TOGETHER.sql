WITH visible AS MATERIALIZED (
    SELECT i.*, row_number() OVER (ORDER BY i.visible_time, i.n) AS place,
        coalesce(i.attempt >= q.max_attempts, FALSE) AS spent,
        coalesce(i.attempt >= q.max_attempts, FALSE) AND i.again_time IS NULL AS dies
    FROM jsonb_to_recordset($2::jsonb) AS g(name text, floor timestamptz)
    LEFT JOIN wfc.queues q ON q.name = g.name, LATERAL (
        SELECT * FROM (
            SELECT ctid AS tid, n, visible_time, attempt, again_time FROM wfc.queue_items
            WHERE queue = g.name AND NOT dead
                AND visible_time >= g.floor AND visible_time <= now() AND (blocked_by = '{}' OR NOT EXISTS (
                SELECT FROM wfc.locks l
                WHERE l.resource = ANY (blocked_by) AND l.expiry > now()))
            ORDER BY visible_time, n
            LIMIT (SELECT jsonb_array_length($1::jsonb))
            FOR UPDATE SKIP LOCKED
        ) f LIMIT 100
    ) i
    WHERE g.floor BETWEEN '-infinity' AND 'infinity'
), claimed AS (
    UPDATE wfc.queue_items i SET
        dead = v.dies,
        visible_time = CASE WHEN v.dies THEN i.visible_time ELSE now() + c.lease_ms * interval '1 millisecond' END,
        lease_id = CASE WHEN v.dies THEN i.lease_id ELSE c.lease_id END,
        lease_worker_id = c.worker_id, lease_epoch = nextval('wfc.claim_epochs'),
        attempt = CASE WHEN v.dies THEN i.attempt WHEN v.spent THEN 1
            ELSE least(i.attempt, 2147483646) + 1 END,
        again_time = NULL
    FROM visible v JOIN (
        SELECT g.*, row_number() OVER (ORDER BY g.call) AS place
        FROM jsonb_to_recordset($1::jsonb) AS g(call int, lease_id text, worker_id text,
            lease_ms bigint)
        WHERE NOT coalesce(nullif(current_setting('wfe.settled', TRUE), '')::jsonb
            @> to_jsonb(g.call), FALSE)
    ) c ON c.place = v.place
    WHERE i.ctid = v.tid
    RETURNING i.queue, i.id, i.payload, v.visible_time, i.blocked_by,
        i.n, i.visible_time AS lease_expiry, i.lease_epoch, i.attempt, c.call, i.dead
)
SELECT queue, id, payload, visible_time,
        CASE WHEN blocked_by <> '{}' THEN to_jsonb(blocked_by) END, n, lease_expiry, lease_epoch, attempt, call, dead FROM claimed;
