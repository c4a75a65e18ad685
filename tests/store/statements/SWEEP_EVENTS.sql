WITH turn AS MATERIALIZED (
    SELECT after_time AS after, after_id FROM wfc.sweeps
    WHERE kind = 'Event' AND next_time <= now()
    FOR UPDATE SKIP LOCKED
), fitting AS MATERIALIZED (
    SELECT name FROM wfc.queues WHERE kind = 'Event' AND EXISTS (SELECT FROM turn)
), looked AS MATERIALIZED (
    SELECT w.* FROM turn, LATERAL (
        SELECT id, event_time AS place,
            event_time < now() - $1::float8 * interval '1 second' AS is_old
        FROM wfc.events
        WHERE NOT is_processed AND event_time <= now() - $1 * interval '1 second'
            AND (event_time, id) > (coalesce(turn.after, '-infinity'), coalesce(turn.after_id, ''))
            AND EXISTS (SELECT FROM fitting)
        ORDER BY event_time, id
        LIMIT $2
    ) w
), lost AS MATERIALIZED (
    SELECT l.id FROM looked l
    WHERE l.is_old AND NOT EXISTS (
        SELECT FROM fitting f JOIN wfc.queue_items i ON i.queue = f.name AND i.id = l.id)
), enqueued AS (
    INSERT INTO wfc.queue_items (queue, id, visible_time)
    SELECT f.name, l.id, now() FROM lost l, fitting f ORDER BY f.name, l.id
    ON CONFLICT DO NOTHING
), last AS (
    SELECT place, id FROM looked ORDER BY place DESC, id DESC LIMIT 1
), noted AS (
    UPDATE wfc.sweeps SET
        after_time = CASE WHEN is_over THEN NULL ELSE (SELECT place FROM last) END,
        after_id = CASE WHEN is_over THEN NULL ELSE (SELECT id FROM last) END,
        next_time = CASE WHEN is_over OR $3::boolean
            THEN now() + $1::float8 * interval '1 second' ELSE next_time END
    FROM (SELECT count(*) < $2 AS is_over FROM looked) l
    WHERE kind = 'Event' AND EXISTS (SELECT FROM turn)
)
SELECT (SELECT count(*) FROM turn), (SELECT count(*) FROM looked), (SELECT count(*) FROM lost),
    array_to_string(ARRAY (SELECT name FROM fitting), ',');
