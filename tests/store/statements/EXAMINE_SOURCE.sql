SELECT current_setting('wal_level'),
    (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),
    has_database_privilege(current_database(), 'CREATE'),
    coalesce(pg_has_role(n.nspowner, 'USAGE'), FALSE),
    current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
    current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication),
    extract(epoch FROM clock_timestamp())::float8
FROM pg_namespace n WHERE n.nspname = $1;
