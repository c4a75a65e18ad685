SELECT a.pid, coalesce(a.usename, '?'), coalesce(a.application_name, '?'),
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM pg_stat_activity a
WHERE a.pid IN (
    SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
) AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start LIMIT 1;
