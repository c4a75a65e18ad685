SELECT c.relname, pg_relation_size(c.oid), c.reltuples::bigint,
    (SELECT count(*) FROM pg_index x WHERE x.indrelid = c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p');
