SELECT c.relname, pg_has_role(c.relowner, 'USAGE'), greatest(c.reltuples, 0)::bigint,
    pg_table_size(c.oid), c.relreplident <> 'n' AND (c.relreplident <> 'd' OR EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f');
