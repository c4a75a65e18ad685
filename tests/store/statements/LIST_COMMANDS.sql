SELECT command_name, data, execute_time, id,
    CASE WHEN lease_expiry > now() THEN lease_expiry END,
    coalesce(lease_worker_id, ''), lease_epoch
FROM wfc.scheduled_commands
WHERE ($1::text IS NULL OR command_name = $1)
    AND ($2::text IS NULL OR data = $2)
    AND ($3::bigint IS NULL OR execute_time < $3)
    AND ($4::boolean IS NULL OR $4 = (lease_expiry IS NOT NULL AND lease_expiry > now()))
    AND ($5::text IS NULL OR (lease_worker_id = $5 AND lease_expiry > now()))
    AND ($6::bigint IS NULL OR (execute_time, id) > ($6, $7::bigint))
ORDER BY execute_time, id
LIMIT $8;
