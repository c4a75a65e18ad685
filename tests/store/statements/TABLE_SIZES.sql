SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid), pg_stat_get_dead_tuples(c.oid)
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
WHERE n.nspname = $1 AND c.relkind = 'r'
    AND c.relname IN (SELECT jsonb_array_elements_text($2::jsonb));
