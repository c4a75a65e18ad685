SELECT i.relname
FROM jsonb_each($1::jsonb) AS d (name, described)
JOIN pg_class i ON i.relname = d.name
JOIN pg_namespace n ON n.oid = i.relnamespace
JOIN pg_index x ON x.indexrelid = i.oid
WHERE n.nspname = $2
    AND pg_get_indexdef(i.oid) = format('CREATE INDEX %%I ON %%I.%%I USING btree (%$3)',
        i.relname, n.nspname, d.described ->> 0, d.described ->> 1)
    AND pg_has_role(i.relowner, 'USAGE')
    AND NOT x.indisclustered AND NOT x.indisreplident AND i.reltablespace = 0
    AND obj_description(i.oid, 'pg_class') IS NULL
ORDER BY i.relname;
