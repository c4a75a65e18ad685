SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.oid <> m.oid)
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE (n.nspname = $2 OR starts_with(n.nspname, $2 || '_')) AND n.nspname > $3
ORDER BY n.nspname
LIMIT $4;
