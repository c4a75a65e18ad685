SELECT g.name, free.count + expired.count, least(coming.ms, leased.ms)
FROM unnest($1::text[]) AS g(name)
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.scheduled_commands
        WHERE command_name = g.name AND execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint AND lease_expiry IS NULL
        ORDER BY execute_time, id
        LIMIT $2
    ) c
) free
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.scheduled_commands
        WHERE command_name = g.name AND execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint AND lease_expiry <= now()
        ORDER BY lease_expiry
        LIMIT $2
    ) c
) expired
LEFT JOIN LATERAL (
    SELECT greatest(execute_time - floor(extract(epoch FROM now()) * 1000)::bigint, (extract(epoch FROM lease_expiry - now()) * 1000)::bigint) AS ms FROM wfc.scheduled_commands
    WHERE command_name = g.name AND execute_time > floor(extract(epoch FROM now()) * 1000)::bigint
    ORDER BY execute_time, id
    LIMIT 1
) coming ON TRUE
LEFT JOIN LATERAL (
    SELECT (extract(epoch FROM lease_expiry - now()) * 1000)::bigint AS ms FROM wfc.scheduled_commands
    WHERE command_name = g.name AND execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint AND lease_expiry > now()
    ORDER BY lease_expiry
    LIMIT 1
) leased ON TRUE;
