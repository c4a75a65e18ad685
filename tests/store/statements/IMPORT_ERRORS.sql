INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
SELECT error_time, workflow_id, execution_pointer_id, message
FROM jsonb_to_recordset($1::jsonb) AS g(at int, copy bigint,
    error_time timestamptz, workflow_id text, execution_pointer_id text, message text)
WHERE g.copy >= (SELECT count(*) FROM wfc.execution_errors s WHERE s.error_time = g.error_time AND s.workflow_id = g.workflow_id AND s.execution_pointer_id = g.execution_pointer_id AND s.message = g.message)
ORDER BY g.at
RETURNING 1;
