SELECT id, event_name, event_key, event_data, event_time, is_processed
FROM wfc.events
WHERE id = $1
    AND (pg_column_size(event_data) > 4096
        OR pg_column_compression(event_data) IS NOT NULL) IS NOT TRUE;
