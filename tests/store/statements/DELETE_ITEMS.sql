WITH named AS MATERIALIZED (
    SELECT i.n FROM jsonb_array_elements_text($2::jsonb) AS g(id), LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = $1 AND id = g.id LIMIT 1
    ) i
), chosen AS MATERIALIZED (
    SELECT n FROM wfc.queue_items
    WHERE n = ANY (ARRAY (
        SELECT n FROM named
        UNION (
            SELECT n FROM wfc.queue_items WHERE queue = $1 AND dead AND visible_time <= 'infinity'
            ORDER BY visible_time, n LIMIT $3
        )
    ))
    ORDER BY queue || '', id || ''
    FOR UPDATE
), deleted AS (
    DELETE FROM wfc.queue_items WHERE n = ANY (ARRAY (SELECT n FROM chosen))
    RETURNING 1
)
SELECT count(*) FROM deleted;
