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
), requeued AS (
    UPDATE wfc.queue_items SET
        visible_time = now(), dead = FALSE, attempt = 0,
        again_time = NULL, lease_id = NULL, lease_worker_id = NULL
    WHERE n = ANY (ARRAY (SELECT n FROM chosen))
        AND CASE
            WHEN $5::bigint IS NOT NULL AND n = ANY (ARRAY (SELECT n FROM named))
                THEN lease_id IS NOT NULL AND lease_epoch = $5
            WHEN dead THEN TRUE
            WHEN lease_id IS NULL THEN visible_time > now()
            ELSE $4::boolean
        END
    RETURNING 1
)
SELECT count(*) FROM requeued;
