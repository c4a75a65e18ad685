SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relname = ANY ($1::name[]) AND c.relkind = 'r')
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $2
WHERE n.nspname IN (SELECT jsonb_array_elements_text($3::jsonb));
