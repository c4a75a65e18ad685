SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = $1 AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0
    AND (n.nspname = $2 OR starts_with(n.nspname, $2 || '_'));
