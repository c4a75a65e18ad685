WITH roots AS MATERIALIZED (
    SELECT w.id, coalesce(w.complete_time, w.create_time) AS ended
    FROM wfc.workflows w
    WHERE w.status IN ('Complete', 'Terminated') AND w.status = ANY ($1::text[])
        AND coalesce(w.complete_time, w.create_time) < $2::timestamptz
        AND (coalesce(w.complete_time, w.create_time), w.id) > ($3::timestamptz, $4::text)
        AND ($5::text IS NULL OR w.definition_id = $5)
        AND (w.root_workflow_id IS NULL OR w.root_workflow_id = w.id
            OR NOT EXISTS (SELECT FROM wfc.workflows r WHERE r.id = w.root_workflow_id))
        AND w.revision = (SELECT s.revision FROM wfc.workflows s WHERE s.id = w.id)
    ORDER BY coalesce(w.complete_time, w.create_time), w.id
    LIMIT $6
    FOR UPDATE OF w SKIP LOCKED
), below AS MATERIALIZED (
    SELECT r.id AS root, c.id, c.has_ended
    FROM roots r, LATERAL (
        SELECT id, status IN ('Complete', 'Terminated')
            AND coalesce(complete_time, create_time) < $2 AS has_ended
        FROM wfc.workflows b WHERE root_workflow_id = r.id AND id <> r.id
            AND b.revision = (SELECT s.revision FROM wfc.workflows s WHERE s.id = b.id)
        FOR UPDATE SKIP LOCKED
    ) c
), trees AS MATERIALIZED (
    SELECT r.id, r.ended, sizes.pointers
    FROM roots r, LATERAL (
        SELECT count(*) AS pointers FROM wfc.execution_pointers p
        WHERE p.workflow_id = r.id
            OR p.workflow_id = ANY (ARRAY (SELECT b.id FROM below b WHERE b.root = r.id))
    ) sizes
), considered AS MATERIALIZED (
    SELECT id, ended FROM (
        SELECT id, ended, sum(pointers + 1) OVER (ORDER BY ended, id) - pointers - 1 AS before
        FROM trees
    ) t WHERE before < $7::bigint
), doomed_roots AS MATERIALIZED (
    SELECT id FROM considered c
    WHERE NOT EXISTS (SELECT FROM below b WHERE b.root = c.id AND NOT b.has_ended)
        AND (SELECT count(*) FROM below b WHERE b.root = c.id)
            = (SELECT count(*) FROM wfc.workflows w
                WHERE w.root_workflow_id = c.id AND w.id <> c.id)
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
