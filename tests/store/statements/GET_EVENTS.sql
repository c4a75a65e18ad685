SELECT id, event_time FROM wfc.events
WHERE event_name = $1 AND event_key = $2 AND event_time <= coalesce($3::timestamptz, now())
    AND (event_time, id) >= (coalesce($5::timestamptz, coalesce($4::timestamptz, '-infinity')), coalesce($6::text, ''))
    AND ($6::text IS NULL OR (event_time, id) <> ($5::timestamptz, $6::text))
ORDER BY event_time, id
LIMIT $7;
