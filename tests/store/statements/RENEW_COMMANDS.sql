WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset($1::jsonb) AS g(n int, id bigint, revision bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT c.id, g.lease_id, c.revision = g.revision AS unchanged
    FROM (SELECT * FROM given ORDER BY id) g, LATERAL (
        SELECT id, revision FROM wfc.scheduled_commands
        WHERE id = g.id AND lease_id = g.lease_id AND lease_expiry > now() FOR UPDATE
    ) c
), renewed AS (
    UPDATE wfc.scheduled_commands
    SET lease_expiry = now() + $2 * interval '1 millisecond'
    WHERE id = ANY (ARRAY (SELECT id FROM held))
        AND (SELECT count(*) FROM held) = (SELECT count(*) FROM given)
)
SELECT n, EXISTS (SELECT FROM held h WHERE h.id = g.id AND h.lease_id = g.lease_id),
    now() + $2 * interval '1 millisecond'
FROM given g;
