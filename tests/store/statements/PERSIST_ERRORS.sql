INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
SELECT e.error_time, e.workflow_id, e.execution_pointer_id, e.message
FROM ROWS FROM (
    jsonb_to_recordset($1::jsonb) AS (
        error_time timestamptz, workflow_id text, execution_pointer_id text, message text)
) WITH ORDINALITY AS e(error_time, workflow_id, execution_pointer_id, message, n)
ORDER BY e.n;
