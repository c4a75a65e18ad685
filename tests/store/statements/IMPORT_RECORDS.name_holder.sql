WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int,
        name text, workflow_id text, claim_id text)
), created AS (
    INSERT INTO wfc.name_holders (name, workflow_id, claim_id)
    SELECT g.name, g.workflow_id, g.claim_id
    FROM given g
    ORDER BY g.name
    ON CONFLICT DO NOTHING
    RETURNING name
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT ((g.workflow_id), (g.claim_id), TRUE) IS NOT DISTINCT FROM (s.workflow_id, s.claim_id, TRUE) AS same
    FROM wfc.name_holders s WHERE s.name = g.name LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.name = g.name);
