SELECT i.relname, x.indisvalid AND x.indisready, t.relname, pg_get_indexdef(i.oid)
FROM pg_namespace n
JOIN pg_class i ON i.relnamespace = n.oid
LEFT JOIN pg_index x ON x.indexrelid = i.oid
LEFT JOIN pg_class t ON t.oid = x.indrelid
WHERE n.nspname = $1 AND i.relname = ANY ($2);
