SELECT r.definition_id, r.next_num
FROM (
    SELECT t.definition_id AS key FROM wfc.definition_sequences t
    WHERE TRUE
    ORDER BY t.definition_id COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.definition_sequences r WHERE r.definition_id = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C";
