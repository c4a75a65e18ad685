WITH given_up AS (
    DELETE FROM wfc.name_holders WHERE name = $1 AND claim_id = $2 RETURNING name
)
SELECT workflow_id, claim_id FROM wfc.name_holders
WHERE name = $1 AND NOT EXISTS (SELECT FROM given_up);
