SELECT r.name, r.workflow_id, r.claim_id
FROM (
    SELECT t.name AS key FROM wfc.name_holders t
    WHERE TRUE
    ORDER BY t.name COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.name_holders r WHERE r.name = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C";
