WITH held AS MATERIALIZED (
    SELECT id, lease_worker_id, lease_expiry, lease_epoch FROM wfc.scheduled_commands
    WHERE command_name = $1 AND data = $2
        AND lease_id IS NOT NULL AND ($3::bigint IS NULL OR lease_epoch = $3)
    FOR UPDATE
), broken AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (SELECT id FROM held))
)
SELECT lease_expiry, coalesce(lease_worker_id, ''), lease_epoch FROM held;
