WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int,
        name text, kind text, max_attempts int)
), created AS (
    INSERT INTO wfc.queues (name, kind, max_attempts)
    SELECT g.name, g.kind, g.max_attempts
    FROM given g
    ORDER BY g.name
    ON CONFLICT DO NOTHING
    RETURNING name
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT ((g.kind), (g.max_attempts), TRUE) IS NOT DISTINCT FROM (s.kind, s.max_attempts, TRUE) AS same
    FROM wfc.queues s WHERE s.name = g.name LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.name = g.name);
