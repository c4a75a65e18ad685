WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(n bigint, lease_id text, call int)
), held AS MATERIALIZED (
    SELECT i.n
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given)) AND i.again_time IS NULL
    ORDER BY queue || '', id || ''
    FOR UPDATE OF i SKIP LOCKED
), removed AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM held))
    RETURNING n
)
SELECT set_config('wfe.settled', (SELECT coalesce(jsonb_agg(call), '[]') FROM given
    WHERE n NOT IN (SELECT n FROM removed))::text, TRUE);
