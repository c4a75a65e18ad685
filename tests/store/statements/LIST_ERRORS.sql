SELECT error_time, workflow_id, execution_pointer_id, message, id
FROM wfc.execution_errors
WHERE ($1::text IS NULL OR workflow_id = $1)
    AND ($2::timestamptz IS NULL OR error_time >= $2)
    AND ($3::timestamptz IS NULL OR error_time < $3)
    AND ($4::bigint IS NULL OR id < $4)
ORDER BY id DESC
LIMIT $5;
