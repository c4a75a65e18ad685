WITH given AS MATERIALIZED (
    SELECT w.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM (VALUES ($1::jsonb)) AS d(document),
        jsonb_to_record(d.document) AS w(
        id text, name text, root_workflow_id text, definition_id text, version int,
        description text, reference text, status text, data jsonb, next_execution bigint,
        create_time timestamptz, complete_time timestamptz, extension_attributes jsonb, execution_pointers jsonb)
), created AS (
    INSERT INTO wfc.workflows (
        id, name, root_workflow_id, definition_id, version, description, reference, status, data,
        next_execution, create_time, complete_time, extension_attributes, content_hash)
    SELECT g.id, g.name, g.root_workflow_id, g.definition_id, g.version, g.description, g.reference,
        g.status, g.data -> 0, g.next_execution, g.create_time, g.complete_time,
        coalesce(g.extension_attributes, '{}'),
        g.content_hash
    FROM given g
    WHERE TRUE
    ON CONFLICT DO NOTHING
    RETURNING id, first_revision
), pointers AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
    SELECT created.id, p.ordinal,
        p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
    FROM created JOIN given ON given.id = created.id,
        jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
)
SELECT EXISTS (SELECT FROM created
        WHERE first_revision > pg_sequence_last_value('wfc.revision_floor')),
    (SELECT coalesce(w.content_hash = g.content_hash, FALSE)
        FROM wfc.workflows w JOIN given g ON w.id = g.id),
    EXISTS (SELECT FROM wfc.workflows w JOIN given g ON w.name = g.name AND w.id <> g.id),
    coalesce((SELECT first_revision FROM created),
        (SELECT w.first_revision FROM wfc.workflows w JOIN given g ON w.id = g.id));
