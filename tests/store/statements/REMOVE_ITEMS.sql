WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(n bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT i.n
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given)) AND i.again_time IS NULL
    ORDER BY queue || '', id || ''
    FOR UPDATE OF i
), removed AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM held)) AND (SELECT count(*) FROM held) = (SELECT count(*) FROM given)
    RETURNING n
)
SELECT set_config('wfe.settled', ((SELECT count(*) FROM removed) = (SELECT count(*) FROM given))::text, TRUE);
