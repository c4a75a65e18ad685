WITH granted AS (
    UPDATE wfc.locks
    SET owner = $2, token = $3, request_id = $5::uuid, epoch = nextval('wfc.claim_epochs'),
        acquire_time = clock_timestamp(),
        expiry = clock_timestamp() + $4 * interval '1 millisecond'
    WHERE resource = $1 AND expiry <= clock_timestamp()
    RETURNING *
)
SELECT l.resource, l.owner, l.epoch, l.expiry, l.acquire_time, l.n, l.token, l.acquired
FROM (
    SELECT *, TRUE AS acquired FROM granted
    UNION ALL
    SELECT *, coalesce(request_id = $5::uuid AND owner = $2, FALSE) FROM wfc.locks
    WHERE resource = $1 AND expiry > clock_timestamp() AND NOT EXISTS (SELECT FROM granted)
) l;
