SELECT c.relname,
    pg_stat_get_live_tuples(c.oid), pg_stat_get_dead_tuples(c.oid),
    pg_table_size(c.oid), pg_indexes_size(c.oid),
    CASE WHEN w.bytes IS NOT NULL THEN greatest(
        pg_relation_size(c.oid) - pg_stat_get_live_tuples(c.oid) * (28 + w.bytes), 0) END
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid
CROSS JOIN LATERAL (
    SELECT sum(s.avg_width * (1 - s.null_frac))::bigint AS bytes FROM pg_stats s
    WHERE s.schemaname = n.nspname AND s.tablename = c.relname
) w
WHERE n.nspname = $1 AND c.relkind = 'r'
    AND c.relname IN (SELECT jsonb_array_elements_text($2::jsonb))
ORDER BY pg_total_relation_size(c.oid) DESC, c.relname;
