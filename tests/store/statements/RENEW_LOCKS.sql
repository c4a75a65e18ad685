WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(i int, n bigint, token text)
), held AS MATERIALIZED (
    SELECT n, token FROM wfc.locks
    WHERE n = ANY (ARRAY (SELECT n FROM given)) AND expiry > now()
    ORDER BY resource FOR NO KEY UPDATE
), checked AS MATERIALIZED (
    SELECT i, n, EXISTS (
        SELECT FROM held h WHERE h.n = g.n AND h.token = g.token
    ) AS is_held
    FROM given g
), renewed AS (
    UPDATE wfc.locks SET expiry = now() + $2 * interval '1 millisecond'
    WHERE n = ANY (ARRAY (SELECT n FROM checked)) AND (SELECT bool_and(is_held) FROM checked)
)
SELECT i, is_held, now() + $2 * interval '1 millisecond' FROM checked;
