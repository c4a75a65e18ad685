INSERT INTO wfc.lifecycle_feed AS f (cluster, floor_xid, floor_n)
SELECT CASE WHEN theirs.n IS NULL THEN (SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()) ELSE 'adopting' END,
    coalesce((least(
        pg_snapshot_xmin(now.snapshot)::text::bigint,
        (SELECT e.xid::text::bigint FROM wfc.lifecycle_events e
            WHERE e.n > theirs.n AND e.xid < pg_snapshot_xmax(now.snapshot)
            ORDER BY e.xid LIMIT 1)
    ) - 1)::text::xid8, '0'),
    coalesce(theirs.n, 0)
FROM (SELECT pg_current_snapshot() AS snapshot) now
CROSS JOIN LATERAL (
    SELECT max(n) AS n FROM wfc.lifecycle_events WHERE xid >= pg_snapshot_xmax(now.snapshot)
) theirs
ON CONFLICT (only_row) DO UPDATE SET
    feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster,
    floor_xid = EXCLUDED.floor_xid, floor_n = EXCLUDED.floor_n
WHERE f.cluster NOT IN ((SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()), 'adopting');
