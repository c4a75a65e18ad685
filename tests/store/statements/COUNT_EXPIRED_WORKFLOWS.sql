WITH RECURSIVE locked AS MATERIALIZED (
    SELECT w.id, coalesce(w.complete_time, w.create_time) AS ended, w.revision
    FROM wfc.workflows w
    WHERE w.status IN ('Complete', 'Terminated') AND w.status = ANY ($1::text[])
        AND coalesce(w.complete_time, w.create_time) < $2::timestamptz
        AND ($5::text IS NULL OR w.definition_id = $5) AND w.definition_id <> ALL ($8::text[]) AND TRUE
        AND ($4::text IS NULL
            OR (coalesce(w.complete_time, w.create_time), w.id) > ($3::timestamptz, $4))
        AND (w.root_workflow_id IS NULL OR w.root_workflow_id = w.id
            OR coalesce((
    SELECT r.root_workflow_id <> r.id IS TRUE AND w.id = ANY (ARRAY (
        WITH RECURSIVE above (id, root, is_last) AS (
            SELECT r.id, r.root_workflow_id,
                r.id = w.id
                OR (hashtextextended(r.id, 0), r.id) < (hashtextextended(w.id, 0), w.id)
                    AND r.status IN ('Complete', 'Terminated') AND r.status = ANY ($1::text[])
        AND coalesce(r.complete_time, r.create_time) < $2::timestamptz
        AND ($5::text IS NULL OR r.definition_id = $5) AND r.definition_id <> ALL ($8::text[])
            UNION
            SELECT n.id, n.root_workflow_id,
                n.id = w.id
                OR (hashtextextended(n.id, 0), n.id) < (hashtextextended(w.id, 0), w.id)
                    AND n.status IN ('Complete', 'Terminated') AND n.status = ANY ($1::text[])
        AND coalesce(n.complete_time, n.create_time) < $2::timestamptz
        AND ($5::text IS NULL OR n.definition_id = $5) AND n.definition_id <> ALL ($8::text[])
            FROM above a, LATERAL (
                SELECT * FROM wfc.workflows WHERE id = a.root OFFSET 0
            ) n
            WHERE NOT a.is_last
        )
        SELECT id FROM above WHERE is_last
    ))
    FROM wfc.workflows r WHERE r.id = w.root_workflow_id
), TRUE))
    ORDER BY coalesce(w.complete_time, w.create_time), w.id
    LIMIT $6
    FOR UPDATE OF w SKIP LOCKED
), roots AS MATERIALIZED (
    SELECT l.id, l.ended, l.revision = (
        SELECT s.revision FROM wfc.workflows s WHERE s.id = l.id) AS is_current
    FROM locked l
), tree (root, id) AS (
    SELECT id, id FROM roots WHERE is_current
    UNION
    SELECT t.root, b.id FROM tree t, LATERAL (
        SELECT id FROM wfc.workflows WHERE root_workflow_id = t.id OFFSET 0
    ) b
), below AS MATERIALIZED (
    SELECT t.root, c.id, c.has_ended
    FROM tree t, LATERAL (
        SELECT id, status IN ('Complete', 'Terminated')
            AND coalesce(complete_time, create_time) < $2 AS has_ended
        FROM wfc.workflows b WHERE id = t.id
            AND b.revision = (SELECT s.revision FROM wfc.workflows s WHERE s.id = b.id)
        FOR UPDATE SKIP LOCKED
    ) c
    WHERE t.id <> t.root
), trees AS MATERIALIZED (
    SELECT r.id, r.ended, r.is_current, sizes.pointers
    FROM roots r, LATERAL (
        SELECT count(*) AS pointers FROM wfc.execution_pointers p
        WHERE p.workflow_id = r.id
            OR p.workflow_id = ANY (ARRAY (SELECT b.id FROM below b WHERE b.root = r.id))
    ) sizes
), considered AS MATERIALIZED (
    SELECT id, ended, is_current FROM (
        SELECT id, ended, is_current,
            sum(pointers + 1) OVER (ORDER BY ended, id) - pointers - 1 AS before
        FROM trees
    ) t WHERE before < $7::bigint
), doomed_roots AS MATERIALIZED (
    SELECT id FROM considered c
    WHERE is_current AND NOT EXISTS (SELECT FROM below b WHERE b.root = c.id AND NOT b.has_ended)
        AND (SELECT count(*) FROM below b WHERE b.root = c.id)
            = (SELECT count(*) FROM tree t WHERE t.root = c.id AND t.id <> c.id)
), doomed AS MATERIALIZED (
    SELECT id FROM doomed_roots
    UNION
    SELECT b.id FROM below b JOIN doomed_roots d ON d.id = b.root
)
SELECT (SELECT count(*) FROM doomed),
    (SELECT count(*) FROM wfc.execution_pointers WHERE workflow_id = ANY (ARRAY (SELECT id FROM doomed))),
    (SELECT count(*) FROM wfc.event_subscriptions WHERE workflow_id = ANY (ARRAY (SELECT id FROM doomed))),
    (SELECT count(*) FROM wfc.execution_errors WHERE workflow_id = ANY (ARRAY (SELECT id FROM doomed))),
    (SELECT count(*) FROM wfc.events
    WHERE event_name = 'wfe.workflow.completed' AND is_processed
        AND event_key = ANY (ARRAY (SELECT id FROM doomed))),
    (SELECT count(*) FROM considered),
    (SELECT count(*) FROM roots),
    (SELECT ended FROM considered ORDER BY ended DESC, id DESC LIMIT 1),
    (SELECT id FROM considered ORDER BY ended DESC, id DESC LIMIT 1);
