WITH adopted AS (
    INSERT INTO wfc.lifecycle_feed AS f (cluster)
    VALUES ((SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()))
    ON CONFLICT (only_row) DO UPDATE SET
        feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster, floor_xid = '0', floor_n = 0
    WHERE f.cluster <> EXCLUDED.cluster
    RETURNING only_row
)
UPDATE wfc.lifecycle_events SET xid = pg_current_xact_id()
WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) AND EXISTS (SELECT FROM adopted);
