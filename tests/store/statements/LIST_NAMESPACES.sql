SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relname = ANY ($6::name[]) AND c.relkind = 'r'),
    EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = n.oid AND o.relname = $2)
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE (n.nspname = $3 OR starts_with(n.nspname, $3 || '_')) AND n.nspname > $4
ORDER BY n.nspname
LIMIT $5;
