WITH part AS MATERIALIZED (
    SELECT ctid FROM wfc.lifecycle_events
    WHERE xid > (SELECT floor_xid FROM wfc.lifecycle_feed WHERE cluster = 'adopting')
        AND n <= (SELECT floor_n FROM wfc.lifecycle_feed)
    ORDER BY xid, n
    LIMIT $1::bigint
), adopted AS (
    UPDATE wfc.lifecycle_events e SET xid = (SELECT floor_xid FROM wfc.lifecycle_feed)
    FROM part WHERE e.ctid = part.ctid
), valid AS (
    UPDATE wfc.lifecycle_feed f
    SET feed_id = gen_random_uuid(), cluster = (SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database()), floor_xid = '0', floor_n = 0
    WHERE f.cluster = 'adopting' AND (SELECT count(*) FROM part) < $1::bigint
)
SELECT count(*) FROM part;
