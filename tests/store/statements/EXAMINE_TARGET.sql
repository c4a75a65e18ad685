SELECT current_setting('server_version_num')::int,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
    has_database_privilege(current_database(), 'CREATE'),
    current_setting('max_logical_replication_workers')::int
        - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL),
    extract(epoch FROM clock_timestamp())::float8;
