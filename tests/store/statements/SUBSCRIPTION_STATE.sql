SELECT count(*) FILTER (WHERE r.srsubstate = 'r'), count(r.srrelid),
    coalesce(sum(pg_table_size(r.srrelid)), 0)::bigint
FROM pg_subscription s LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid
WHERE s.subname = $1
    AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY s.oid;
