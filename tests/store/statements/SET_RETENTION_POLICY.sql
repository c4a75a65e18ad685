INSERT INTO wfc.retention_rules (kind, definition_id, age_us)
SELECT r ->> 0, r ->> 1, (r ->> 2)::bigint FROM jsonb_array_elements($1::jsonb) r
ORDER BY 1, 2;
