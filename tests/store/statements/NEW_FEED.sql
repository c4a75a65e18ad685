INSERT INTO wfc.lifecycle_feed AS f (cluster, floor_xid, floor_n)
VALUES ('adopting', pg_current_xact_id(),
    coalesce(pg_sequence_last_value(pg_get_serial_sequence('wfc.lifecycle_events', 'n')), 0))
ON CONFLICT (only_row) DO UPDATE SET
    feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster,
    floor_xid = EXCLUDED.floor_xid, floor_n = EXCLUDED.floor_n;
