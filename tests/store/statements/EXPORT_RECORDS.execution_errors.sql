SELECT r.error_time, r.workflow_id, r.execution_pointer_id, r.message,
    (SELECT count(*) FROM wfc.execution_errors s WHERE s.error_time = r.error_time AND s.workflow_id = r.workflow_id AND s.execution_pointer_id = r.execution_pointer_id AND s.message = r.message AND s.id < r.id)
FROM (
    SELECT * FROM wfc.execution_errors r WHERE TRUE ORDER BY r.id OFFSET $1
) r
ORDER BY r.id;
