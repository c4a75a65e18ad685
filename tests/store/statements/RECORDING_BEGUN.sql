SELECT f.recording, f.floor_xid IS NULL AND f.cluster = (SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()) AND f.recording = pg_sequence_last_value('wfc.workflow_recording'),
    ARRAY (
        SELECT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
            AND relation = 'wfc.workflows'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND virtualtransaction IS NOT NULL
    )::text
FROM wfc.workflow_feed f;
