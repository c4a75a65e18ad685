SELECT r.queue, r.id, r.payload, r.visible_time,
        CASE WHEN r.blocked_by <> '{}' THEN to_jsonb(r.blocked_by) END, r.dead, r.attempt
FROM wfc.queue_items r
ORDER BY r.n
OFFSET $1;
