SELECT kind, definition_id, age_us, set_time, deleted_rows, passed_time
FROM wfc.retention_rules ORDER BY definition_id, kind;
