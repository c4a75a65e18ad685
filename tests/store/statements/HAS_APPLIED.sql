SELECT EXISTS (SELECT FROM pg_stat_replication
        WHERE application_name = m.name AND replay_lsn >= m.lsn)
    OR EXISTS (SELECT FROM pg_replication_slots
        WHERE slot_name = m.name AND confirmed_flush_lsn >= m.lsn)
FROM (SELECT $1::text AS name, $2::pg_lsn AS lsn) m;
