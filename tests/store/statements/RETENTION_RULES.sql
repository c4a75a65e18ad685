SELECT id::text, kind, definition_id, now() - age_us * interval '1 microsecond',
    after_time, after_id,
    ARRAY (SELECT DISTINCT o.definition_id FROM wfc.retention_rules o
        WHERE o.definition_id <> '' AND r.definition_id = '')::text
FROM wfc.retention_rules r
WHERE age_us IS NOT NULL AND (NOT $1::boolean OR next_time <= now())
ORDER BY next_time, kind, definition_id;
