SELECT count(*)::int
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE starts_with(n.nspname, $2 || '_');
