SELECT queue, id, payload, visible_time,
        CASE WHEN blocked_by <> '{}' THEN to_jsonb(blocked_by) END, n, dead,
    CASE WHEN dead THEN 'Dead' WHEN visible_time <= now() THEN 'Waiting'
        WHEN lease_id IS NULL THEN 'Delayed' ELSE 'Leased' END, attempt, again_time, coalesce(lease_worker_id, ''), lease_epoch
FROM wfc.queue_items
WHERE queue = $1
    AND CASE WHEN $2::text IS NULL THEN visible_time <= 'infinity' ELSE id = $2 END
    AND ($3::boolean IS NULL OR dead = $3)
    AND ($4::boolean IS NULL OR (visible_time > now()) = $4)
    AND ($5::boolean IS NULL OR (lease_id IS NOT NULL) = $5)
    AND ($6::timestamptz IS NULL OR (dead, visible_time, n) > ($8::boolean, $6, $7::bigint))
    AND ($3 IS NULL OR $6 IS NULL OR visible_time >= $6)
ORDER BY dead, visible_time, n
LIMIT $9;
