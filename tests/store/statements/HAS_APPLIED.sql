SELECT EXISTS (SELECT FROM pg_stat_replication
        WHERE application_name = m.name
            AND CASE WHEN m.is_durable THEN flush_lsn ELSE replay_lsn END >= m.lsn)
    OR EXISTS (SELECT FROM pg_replication_slots
        WHERE slot_name = m.name AND confirmed_flush_lsn >= m.lsn)
FROM (SELECT $1::text AS name, $2::pg_lsn AS lsn, $3::boolean AS is_durable) m;
