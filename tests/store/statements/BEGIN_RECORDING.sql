WITH begun AS (
    INSERT INTO wfc.workflow_feed AS f (only_row) VALUES (TRUE)
    ON CONFLICT (only_row) DO UPDATE SET
        feed_id = EXCLUDED.feed_id, cluster = (SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()),
        recording = setval('wfc.workflow_recording', (pg_sequence_last_value('wfc.workflow_recording') + 1) | 1),
        floor_xid = NULL, floor_n = 0, watch_time = now()
    WHERE NOT (f.cluster = (SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()) AND f.recording = pg_sequence_last_value('wfc.workflow_recording'))
    RETURNING only_row
)
DELETE FROM wfc.workflow_changes
WHERE xid >= pg_snapshot_xmin(pg_current_snapshot()) AND EXISTS (SELECT FROM begun);
