UPDATE wfc.queue_items i SET
    visible_time = least(g.visible_time, i.again_time), attempt = greatest(i.attempt - 1, 0),
    again_time = NULL, lease_id = NULL, lease_worker_id = NULL
FROM jsonb_to_recordset($1::jsonb) AS g(n bigint, lease_id text, visible_time timestamptz)
WHERE i.n = g.n AND i.lease_id = g.lease_id AND NOT i.dead
RETURNING i.queue;
