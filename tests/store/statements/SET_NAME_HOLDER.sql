WITH taken AS (
    INSERT INTO wfc.name_holders (name, workflow_id, claim_id)
    SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM wfc.workflows WHERE name = $1 AND id <> $2)
    ON CONFLICT (name) DO NOTHING
    RETURNING workflow_id, claim_id
), holders AS (
    SELECT workflow_id, claim_id FROM taken
    UNION ALL
    SELECT workflow_id, claim_id FROM wfc.name_holders WHERE name = $1
    UNION ALL
    SELECT id, '' FROM wfc.workflows WHERE name = $1 AND id <> $2
)
SELECT workflow_id, claim_id FROM holders LIMIT 1;
