SELECT c.relname, t.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_class t ON t.oid = i.indrelid
WHERE n.nspname = $1 AND starts_with(c.relname, $2);
