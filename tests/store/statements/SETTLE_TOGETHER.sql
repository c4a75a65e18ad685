WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset($1::jsonb) AS g(at int, n bigint, lease_id text, act text,
        delay_ms bigint, call int)
), held AS MATERIALIZED (
    SELECT i.n, i.queue, i.id, i.dead, i.attempt, i.again_time,
        g.at, g.act, g.delay_ms, g.call
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given))
    ORDER BY queue || '', id || ''
    FOR UPDATE OF i SKIP LOCKED
), lost AS MATERIALIZED (
    SELECT DISTINCT call FROM given WHERE at NOT IN (SELECT at FROM held)
), judged AS MATERIALIZED (
    SELECT h.*,
        h.act = 'acknowledge' OR (h.act = 'confirm' AND NOT CASE q.kind
            WHEN 'Workflow' THEN coalesce((
                SELECT status = 'Runnable'
                    AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint
                FROM wfc.workflows WHERE id = h.id COLLATE "default"), FALSE)
            WHEN 'Event' THEN coalesce((
                SELECT NOT is_processed FROM wfc.events WHERE id = h.id COLLATE "default"), FALSE)
            ELSE FALSE END) AS done,
        h.dead OR coalesce(h.attempt >= q.max_attempts, FALSE) AS spent,
        CASE h.act WHEN 'return' THEN h.delay_ms * interval '1 millisecond'
            ELSE least(60, 2 ^ least(h.attempt - 1, 10)) * interval '1 second' END AS delay
    FROM held h LEFT JOIN wfc.queues q ON q.name = h.queue
    WHERE h.call NOT IN (SELECT call FROM lost)
), removed AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM judged WHERE done AND again_time IS NULL))
), kept AS (
    UPDATE wfc.queue_items i SET
        visible_time = CASE WHEN j.done THEN j.again_time
            ELSE least(now() + j.delay, j.again_time) END,
        dead = j.spent AND j.again_time IS NULL,
        attempt = CASE WHEN j.done OR (j.spent AND j.again_time IS NOT NULL)
            THEN 0 ELSE j.attempt END,
        again_time = NULL, lease_id = NULL, lease_worker_id = NULL
    FROM judged j
    WHERE i.n = j.n AND NOT (j.done AND j.again_time IS NULL)
        AND i.n = ANY (ARRAY (SELECT n FROM judged))
)
SELECT (SELECT jsonb_agg(at ORDER BY at) FROM given WHERE at NOT IN (SELECT at FROM held)),
    (SELECT jsonb_agg(at ORDER BY at) FROM judged WHERE act = 'confirm' AND NOT done),
    (SELECT jsonb_agg(queue) FROM judged WHERE NOT (done AND again_time IS NULL)),
    set_config('wfe.settled', (SELECT coalesce(jsonb_agg(call), '[]') FROM lost)::text, TRUE);
