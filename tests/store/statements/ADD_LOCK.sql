WITH added AS (
    INSERT INTO wfc.locks (resource)
    SELECT $1 WHERE NOT EXISTS (SELECT FROM wfc.locks WHERE resource = $1)
    ON CONFLICT (resource) DO NOTHING
    RETURNING n
)
DELETE FROM wfc.locks WHERE n = ANY (ARRAY (
    SELECT l.n FROM added, LATERAL (
        SELECT n FROM wfc.locks WHERE expiry <= now() AND resource <> $1
        ORDER BY expiry LIMIT 2 FOR UPDATE SKIP LOCKED
    ) l));
