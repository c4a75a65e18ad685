WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset($1::jsonb) AS g(n int, id bigint, revision bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT c.id, g.lease_id, c.revision = g.revision AS unchanged
    FROM (SELECT * FROM given ORDER BY id) g, LATERAL (
        SELECT id, revision FROM wfc.scheduled_commands
        WHERE id = g.id AND lease_id = g.lease_id FOR UPDATE
    ) c
), released AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (SELECT id FROM held))
        AND (SELECT count(*) FROM held) = (SELECT count(*) FROM given)
)
SELECT n, EXISTS (SELECT FROM held h WHERE h.id = g.id AND h.lease_id = g.lease_id)
FROM given g;
