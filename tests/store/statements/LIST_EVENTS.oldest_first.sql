SELECT id, event_name, event_key, event_data, event_time, is_processed
FROM wfc.events
WHERE ($1::text IS NULL OR event_name = $1) AND ($2::text IS NULL OR event_key = $2)
    AND ($3::boolean IS NULL OR is_processed = $3)
    AND ($4::timestamptz IS NULL OR event_time >= $4::timestamptz OR $7::text IS NOT NULL)
    AND ($5::timestamptz IS NULL OR event_time < $5::timestamptz)
    AND ($7::text IS NULL OR (event_time, id) > ($6::timestamptz, $7))
ORDER BY event_time ASC, id ASC
LIMIT $8;
