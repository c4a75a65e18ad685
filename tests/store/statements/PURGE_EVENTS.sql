WITH doomed AS MATERIALIZED (
    SELECT id, event_time FROM wfc.events
    WHERE event_time < $1::timestamptz
        AND ($3::text IS NULL OR (event_time, id) > ($2::timestamptz, $3))
        AND ($4::boolean OR is_processed) AND ($5::text IS NULL OR event_name = $5)
        AND TRUE
    ORDER BY event_time, id
    LIMIT $6 FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM wfc.events WHERE id = ANY (ARRAY (SELECT id FROM doomed)) RETURNING 1
)
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM doomed),
    (SELECT event_time FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1),
    (SELECT id FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1);
