WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int, revision bigint,
        first_revision bigint, content_hash text, execution_pointers jsonb,
        id text, name text, root_workflow_id text, definition_id text, version int,
        description text, reference text, status text, data jsonb, next_execution bigint,
        create_time timestamptz, complete_time timestamptz, extension_attributes jsonb)
), created AS (
    INSERT INTO wfc.workflows (
        id, name, root_workflow_id, definition_id, version, description, reference, status, data,
        next_execution, create_time, complete_time, extension_attributes, revision, first_revision, content_hash)
    SELECT g.id, g.name, g.root_workflow_id, g.definition_id, g.version, g.description, g.reference,
        g.status, g.data -> 0, g.next_execution, g.create_time, g.complete_time,
        coalesce(g.extension_attributes, '{}'), g.revision, g.first_revision, decode(g.content_hash, 'hex')
    FROM given g
    ORDER BY g.id
    ON CONFLICT DO NOTHING
    RETURNING id
), pointers AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
    SELECT g.id, p.ordinal,
        p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
    FROM created JOIN given g ON g.id = created.id,
        jsonb_to_recordset(g.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
)
SELECT g.at, CASE
    WHEN s.same IS NOT NULL THEN s.same
    WHEN EXISTS (SELECT FROM wfc.workflows o WHERE o.name = g.name AND o.id <> g.id) THEN FALSE
    END
FROM given g
LEFT JOIN LATERAL (
    SELECT s.revision >= g.revision
        AND ((g.name), (g.root_workflow_id), (g.definition_id), (g.version), (g.description), (g.reference), (g.status), (g.data -> 0)::text, (g.next_execution), (g.create_time), (g.complete_time), (coalesce(g.extension_attributes, '{}'))::text, TRUE) IS NOT DISTINCT FROM (s.name, s.root_workflow_id, s.definition_id, s.version, s.description, s.reference, s.status, s.data::text, s.next_execution, s.create_time, s.complete_time, s.extension_attributes::text, TRUE)
        AND ARRAY (SELECT ROW ((p.id), (p.step_id), (coalesce(p.active, FALSE)), (p.status), (p.sleep_until), (p.persistence_data -> 0)::text, (p.start_time), (p.end_time), (p.event_name), (p.event_key), (coalesce(p.event_published, FALSE)), (p.event_data -> 0)::text, (p.step_name), (coalesce(p.retry_count, 0)), (coalesce(p.children, '[]')), (p.context_item -> 0)::text, (p.predecessor_id), (p.outcome -> 0)::text, (coalesce(p.scope, '[]')), (coalesce(p.extension_attributes, '{}'))::text)::text FROM jsonb_to_recordset(g.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb) ORDER BY p.ordinal)
        = ARRAY (SELECT ROW (p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data::text, p.start_time, p.end_time, p.event_name, p.event_key, p.event_published, p.event_data::text, p.step_name, p.retry_count, p.children, p.context_item::text, p.predecessor_id, p.outcome::text, p.scope, p.extension_attributes::text)::text FROM (SELECT * FROM wfc.execution_pointers p WHERE p.workflow_id = g.id ORDER BY p.ordinal, p.id LIMIT CASE WHEN $2::boolean THEN NULL::bigint ELSE jsonb_array_length(g.execution_pointers) END) p) AS same
    FROM wfc.workflows s WHERE s.id = g.id LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.id = g.id);
