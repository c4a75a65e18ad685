WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int,
        command_name text, data text, execute_time bigint)
), created AS (
    INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
    SELECT g.command_name, g.data, g.execute_time
    FROM given g
    ORDER BY g.command_name, g.data
    ON CONFLICT DO NOTHING
    RETURNING command_name, data
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT ((g.command_name), (g.data), (g.execute_time), TRUE) IS NOT DISTINCT FROM (s.command_name, s.data, s.execute_time, TRUE) AS same
    FROM wfc.scheduled_commands s WHERE s.command_name = g.command_name AND s.data = g.data LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.command_name = g.command_name AND s.data = g.data);
