WITH free AS MATERIALIZED (
    SELECT id, execute_time, octet_length(data) + 160 AS bytes
    FROM wfc.scheduled_commands
    WHERE execute_time <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
        AND ($7::text IS NULL OR command_name = $7)
        AND lease_expiry IS NULL
    ORDER BY execute_time, id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), expired AS MATERIALIZED (
    SELECT id, execute_time, octet_length(data) + 160 AS bytes
    FROM wfc.scheduled_commands
    WHERE execute_time <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
        AND ($7::text IS NULL OR command_name = $7)
        AND lease_expiry <= now()
    ORDER BY execute_time, id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), due AS (
    SELECT * FROM (SELECT * FROM free UNION ALL SELECT * FROM expired) d
    ORDER BY execute_time, id
    LIMIT $2
), fitting AS (
    SELECT id FROM (
        SELECT id, sum(bytes) OVER soonest_first AS bytes, row_number() OVER soonest_first AS n
        FROM due WINDOW soonest_first AS (ORDER BY execute_time, id)
    ) d WHERE bytes <= $6 OR n = 1
), claimed AS (
    UPDATE wfc.scheduled_commands c
    SET lease_id = $3, lease_worker_id = $4, lease_expiry = now() + $5 * interval '1 millisecond',
        lease_epoch = nextval('wfc.claim_epochs')
    WHERE c.id = ANY (ARRAY (SELECT id FROM fitting))
    RETURNING c.command_name, c.data, c.execute_time,
        c.id, c.revision, c.lease_expiry, c.lease_epoch
)
SELECT command_name, data, execute_time, id, revision, lease_expiry, lease_epoch
FROM claimed ORDER BY execute_time, id;
