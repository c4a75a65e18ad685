SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = m.name),
    (SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots
        WHERE slot_name = m.name AND wal_status IS DISTINCT FROM 'lost')::bigint
FROM (SELECT $1::text AS name) m;
