SELECT r.command_name, r.data, r.execute_time
FROM wfc.scheduled_commands r
WHERE TRUE
ORDER BY r.command_name COLLATE "C", r.data COLLATE "C"
OFFSET $1;
