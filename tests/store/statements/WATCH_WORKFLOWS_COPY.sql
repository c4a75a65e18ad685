SELECT f.feed_id, f.floor_xid IS NOT NULL, f.floor_xid, f.floor_n, h.xid,
    (SELECT (extract(epoch FROM now() - publish_time) * 1000)::bigint
        FROM wfc.workflow_changes WHERE xid >= h.xid ORDER BY xid, n LIMIT 1),
    l.xid, l.n, e.xid, e.n, e.workflow_id, e.name, e.root_workflow_id, e.definition_id, e.version, e.reference,
        e.status, e.create_time, e.complete_time, e.revision
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xid) h
LEFT JOIN wfc.workflow_feed f ON TRUE
LEFT JOIN LATERAL (
    SELECT xid, n FROM wfc.workflow_changes
    WHERE xid < h.xid AND $3::bigint = 0
    ORDER BY xid DESC, n DESC
    LIMIT 1
) l ON TRUE
LEFT JOIN LATERAL (
    SELECT * FROM wfc.workflow_changes
    WHERE (xid, n) > ($1::xid8, $2::bigint) AND xid < h.xid
    ORDER BY xid, n
    LIMIT $3::bigint
) e ON TRUE
ORDER BY e.xid, e.n;
