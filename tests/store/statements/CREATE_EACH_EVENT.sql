WITH given AS MATERIALIZED (
    SELECT d.at, g.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($1::jsonb) WITH ORDINALITY AS d(document, at),
        jsonb_to_record(d.document) AS g(
        id text, event_name text, event_key text, event_data jsonb, event_time timestamptz,
        is_processed boolean)
), created AS (
    INSERT INTO wfc.events (
        id, event_name, event_key, event_data, event_time, is_processed,
        content_hash)
    SELECT g.id, g.event_name, g.event_key, g.event_data -> 0, g.event_time, g.is_processed,
        g.content_hash
    FROM given g
    WHERE TRUE
    ORDER BY g.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, content_hash
)
SELECT TRUE, NULL::boolean, g.at
FROM created c JOIN given g ON g.id = c.id AND g.content_hash = c.content_hash;
