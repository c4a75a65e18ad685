SELECT r.name, r.kind, r.max_attempts
FROM (
    SELECT t.name AS key FROM wfc.queues t
    WHERE TRUE
    ORDER BY t.name COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.queues r WHERE r.name = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C";
