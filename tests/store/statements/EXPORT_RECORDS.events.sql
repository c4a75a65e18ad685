SELECT r.id, r.event_name, r.event_key, r.event_data, r.event_time, r.is_processed, r.content_hash
FROM (
    SELECT t.id AS key FROM wfc.events t
    WHERE TRUE
    ORDER BY t.id COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.events r WHERE r.id = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C";
