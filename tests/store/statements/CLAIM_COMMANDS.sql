WITH due AS (
    SELECT id FROM wfc.scheduled_commands
    WHERE execute_time <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
        AND (lease_expiry IS NULL OR lease_expiry <= now())
    ORDER BY execute_time, id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE wfc.scheduled_commands c
    SET lease_id = $3, lease_worker_id = $4, lease_expiry = now() + $5 * interval '1 millisecond',
        lease_epoch = nextval('wfc.claim_epochs')
    WHERE c.id = ANY (ARRAY (SELECT id FROM due))
    RETURNING c.command_name, c.data, c.execute_time,
        c.id, c.revision, c.lease_expiry, c.lease_epoch
)
SELECT command_name, data, execute_time, id, revision, lease_expiry, lease_epoch
FROM claimed ORDER BY execute_time, id;
