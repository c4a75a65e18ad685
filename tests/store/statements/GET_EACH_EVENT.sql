SELECT e.id, e.event_name, e.event_key, e.event_data, e.event_time, e.is_processed, asked.n
FROM unnest($1::text[]) WITH ORDINALITY AS asked(id, n), LATERAL (
    SELECT * FROM wfc.events e
    WHERE e.id = asked.id AND (pg_column_size(e.event_data) > 4096
        OR pg_column_compression(e.event_data) IS NOT NULL) IS NOT TRUE
    LIMIT 1
) e;
