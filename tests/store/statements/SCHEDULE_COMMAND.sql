WITH rescheduled AS (
    UPDATE wfc.scheduled_commands SET execute_time = $3
    WHERE command_name = $1 AND data = $2
    RETURNING id
)
INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM rescheduled)
ON CONFLICT (command_name, data) DO UPDATE SET execute_time = excluded.execute_time;
