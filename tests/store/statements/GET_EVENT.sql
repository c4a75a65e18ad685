SELECT id, event_name, event_key, event_data, event_time, is_processed
FROM wfc.events
WHERE id = $1;
