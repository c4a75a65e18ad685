WITH turn AS MATERIALIZED (
    SELECT FROM wfc.retention_rules
    WHERE id = $3::uuid AND next_time <= now()
        AND after_id IS NOT DISTINCT FROM NULL::text
    FOR UPDATE SKIP LOCKED
), doomed AS MATERIALIZED (
    SELECT id FROM wfc.execution_errors
    WHERE error_time < $1::timestamptz
        AND EXISTS (SELECT FROM turn)
    ORDER BY error_time
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM wfc.execution_errors WHERE id = ANY (ARRAY (SELECT id FROM doomed)) RETURNING 1
), noted AS (
    UPDATE wfc.retention_rules SET
        (after_time, after_id) = (SELECT l.time, l.id FROM (SELECT NULL::timestamptz AS time, NULL AS id) l WHERE NOT b.is_over),
        next_time = now() + interval '1 second' * CASE WHEN b.is_over THEN $4::float8
            ELSE b.rows * $5::float8 END,
        passed_time = CASE WHEN b.is_over THEN now() ELSE passed_time END,
        deleted_rows = deleted_rows + b.rows
    FROM (SELECT (SELECT count(*) FROM deleted) AS rows, (SELECT count(*) FROM doomed) < $2 AS is_over) b
    WHERE id = $3::uuid AND EXISTS (SELECT FROM turn)
)
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM doomed);
