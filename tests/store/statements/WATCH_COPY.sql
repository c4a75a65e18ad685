SELECT f.feed_id, TRUE, f.floor_xid, f.floor_n, h.xid,
    (SELECT (extract(epoch FROM now() - publish_time) * 1000)::bigint
        FROM wfc.lifecycle_events WHERE xid >= h.xid ORDER BY xid, n LIMIT 1),
    l.xid, l.n, e.xid, e.n, e.type, e.workflow_id, e.definition_id, e.version, e.reference, e.event_time, e.step_id,
        e.step_name, e.message
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xid) h
LEFT JOIN wfc.lifecycle_feed f ON TRUE
LEFT JOIN LATERAL (
    SELECT xid, n FROM wfc.lifecycle_events
    WHERE xid < h.xid AND $3::bigint = 0
    ORDER BY xid DESC, n DESC
    LIMIT 1
) l ON TRUE
LEFT JOIN LATERAL (
    SELECT * FROM wfc.lifecycle_events
    WHERE (xid, n) > ($1::xid8, $2::bigint) AND xid < h.xid
    ORDER BY xid, n
    LIMIT $3::bigint
) e ON TRUE
ORDER BY e.xid, e.n;
