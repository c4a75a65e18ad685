SELECT id, event_time FROM wfc.events
WHERE event_name = $1 AND event_key = $2 AND event_time <= coalesce($3::timestamptz, now())
    AND (event_time, id) >= (coalesce($4::timestamptz, '-infinity'), coalesce($5::text, ''))
    AND ($5::text IS NULL OR (event_time, id) <> ($4::timestamptz, $5::text))
ORDER BY event_time, id
LIMIT $6;
