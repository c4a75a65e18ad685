WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(at int, n bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT i.n, g.at
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given))
        AND CASE WHEN i.dead THEN FALSE ELSE i.visible_time > now() END
    ORDER BY queue || '', id || ''
    FOR UPDATE OF i
), renewed AS (
    UPDATE wfc.queue_items SET visible_time = now() + $2 * interval '1 millisecond'
    WHERE n = ANY (ARRAY (SELECT n FROM held))
        AND (SELECT count(*) FROM held) = (SELECT count(*) FROM given)
)
SELECT at, EXISTS (SELECT FROM held h WHERE h.at = g.at),
    now() + $2 * interval '1 millisecond'
FROM given g;
