SELECT id, event_time FROM wfc.events
WHERE NOT is_processed AND event_time <= coalesce($1::timestamptz, now())
    AND (event_time, id) >= (coalesce($2::timestamptz, '-infinity'), coalesce($3::text, ''))
    AND ($3::text IS NULL OR (event_time, id) <> ($2::timestamptz, $3::text))
ORDER BY event_time, id
LIMIT $4;
