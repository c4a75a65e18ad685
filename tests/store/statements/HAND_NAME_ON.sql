WITH handed AS (
    UPDATE wfc.name_holders SET workflow_id = $2, claim_id = $3
    WHERE name = $1 AND claim_id = $4
    RETURNING workflow_id, claim_id
)
SELECT workflow_id, claim_id FROM handed
UNION ALL
SELECT workflow_id, claim_id FROM wfc.name_holders
WHERE name = $1 AND NOT EXISTS (SELECT FROM handed);
