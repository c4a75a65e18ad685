WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int, content_hash text,
        id text, event_name text, event_key text, event_data jsonb, event_time timestamptz,
        is_processed boolean)
), created AS (
    INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed, content_hash)
    SELECT g.id, g.event_name, g.event_key, g.event_data -> 0, g.event_time, g.is_processed, decode(g.content_hash, 'hex')
    FROM given g
    ORDER BY g.id
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT ((g.event_name), (g.event_key), (g.event_data -> 0)::text, (g.event_time), (g.is_processed), TRUE) IS NOT DISTINCT FROM (s.event_name, s.event_key, s.event_data::text, s.event_time, s.is_processed, TRUE) AS same
    FROM wfc.events s WHERE s.id = g.id LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.id = g.id);
