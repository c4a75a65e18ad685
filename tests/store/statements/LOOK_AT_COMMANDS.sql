SELECT g.name, ready.count, least(coming.ms, leased.ms)
FROM unnest($1::text[]) AS g(name)
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.scheduled_commands
        WHERE command_name = g.name AND execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint
            AND (lease_expiry IS NULL OR lease_expiry <= now())
        ORDER BY execute_time, id
        LIMIT $2
    ) c
) ready
LEFT JOIN LATERAL (
    SELECT greatest(execute_time - floor(extract(epoch FROM now()) * 1000)::bigint, (extract(epoch FROM lease_expiry - now()) * 1000)::bigint) AS ms FROM wfc.scheduled_commands
    WHERE command_name = g.name AND execute_time > floor(extract(epoch FROM now()) * 1000)::bigint
    ORDER BY execute_time, id
    LIMIT 1
) coming ON TRUE
CROSS JOIN LATERAL (
    SELECT min(ms) AS ms FROM (
        SELECT (extract(epoch FROM lease_expiry - now()) * 1000)::bigint AS ms FROM wfc.scheduled_commands
        WHERE command_name = g.name AND execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint AND lease_expiry > now()
        ORDER BY execute_time, id
        LIMIT $2
    ) c
) leased;
