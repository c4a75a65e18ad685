WITH turn AS MATERIALIZED (
    SELECT FROM wfc.retention_rules
    WHERE id = $7::uuid AND next_time <= now()
        AND after_id IS NOT DISTINCT FROM $3::text
    FOR UPDATE SKIP LOCKED
), doomed AS MATERIALIZED (
    SELECT id, event_time FROM wfc.events
    WHERE event_time < $1::timestamptz
        AND ($3::text IS NULL OR (event_time, id) > ($2::timestamptz, $3))
        AND ($4::boolean OR is_processed) AND ($5::text IS NULL OR event_name = $5)
        AND EXISTS (SELECT FROM turn)
    ORDER BY event_time, id
    LIMIT $6 FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM wfc.events WHERE id = ANY (ARRAY (SELECT id FROM doomed)) RETURNING 1
), noted AS (
    UPDATE wfc.retention_rules SET
        (after_time, after_id) = (SELECT l.time, l.id FROM (SELECT event_time AS time, id FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1) l WHERE NOT b.is_over),
        next_time = now() + interval '1 second' * CASE WHEN b.is_over THEN $8::float8
            ELSE b.rows * $9::float8 END,
        passed_time = CASE WHEN b.is_over THEN now() ELSE passed_time END,
        deleted_rows = deleted_rows + b.rows
    FROM (SELECT (SELECT count(*) FROM deleted) AS rows, (SELECT count(*) FROM doomed) < $6 AS is_over) b
    WHERE id = $7::uuid AND EXISTS (SELECT FROM turn)
)
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM doomed),
    (SELECT event_time FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1),
    (SELECT id FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1);
