WITH stored AS MATERIALIZED (
    SELECT id, revision FROM wfc.workflows WHERE id = $1
), given AS MATERIALIZED (
    SELECT w.* FROM jsonb_to_record($2::jsonb) AS w(
        id text, name text, root_workflow_id text, definition_id text, version int,
        description text, reference text, status text, data jsonb, next_execution bigint,
        create_time timestamptz, complete_time timestamptz, extension_attributes jsonb, execution_pointers jsonb)
), subscriptions AS MATERIALIZED (
    SELECT s.*, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($4::jsonb) AS documents(document),
        jsonb_to_record(document) AS s(
            id text, workflow_id text, step_id int, execution_pointer_id text, event_name text,
            event_key text, subscribe_as_of timestamptz, subscription_data jsonb,
            external_token text, external_worker_id text, external_token_expiry timestamptz)
), existing AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT s.content_hash FROM subscriptions s WHERE s.id = e.id) AS same
    FROM wfc.event_subscriptions e WHERE e.id = ANY (ARRAY (SELECT id FROM subscriptions))
), repeated AS MATERIALIZED (
    SELECT revision, content_hash = $6::bytea AS same FROM wfc.requests
    WHERE workflow_id = $1 AND request_id = $5::uuid
), conditions AS MATERIALIZED (
    SELECT (SELECT min(r.n) - 1
            FROM jsonb_array_elements_text($2::jsonb -> 'removed') WITH ORDINALITY AS r(id, n)
            LEFT JOIN LATERAL (
                SELECT id FROM wfc.execution_pointers p
                WHERE p.workflow_id = $1 AND p.id = r.id LIMIT 1
            ) p ON TRUE
            WHERE p.id IS NULL) AS unknown_pointer,
        (SELECT TRUE
            FROM jsonb_to_record($2::jsonb -> 'room') AS room(other bigint, together bigint),
                wfc.workflows w
            WHERE $2::jsonb ? 'room' AND w.id = $1 AND CASE
                WHEN NOT $2::jsonb ? 'data' THEN octet_length(w.data::text) > room.other
                WHEN octet_length(w.description) > room.other THEN room.together
                    < octet_length(w.description) + octet_length(($2::jsonb #> '{data,0}')::text)
                END) AS header_too_large
), updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        root_workflow_id = CASE WHEN $2::jsonb ? 'root_workflow_id'
            THEN g.root_workflow_id ELSE w.root_workflow_id END,
        definition_id = coalesce(g.definition_id, w.definition_id),
        version = coalesce(g.version, w.version),
        description = CASE WHEN $2::jsonb ? 'description'
            THEN g.description ELSE w.description END,
        reference = CASE WHEN $2::jsonb ? 'reference'
            THEN g.reference ELSE w.reference END,
        status = coalesce(g.status, w.status),
        data = coalesce(g.data -> 0, w.data),
        next_execution = CASE WHEN $2::jsonb ? 'next_execution'
            THEN g.next_execution ELSE w.next_execution END,
        create_time = coalesce(g.create_time, w.create_time),
        complete_time = CASE WHEN $2::jsonb ? 'complete_time'
            THEN g.complete_time ELSE w.complete_time END,
        extension_attributes = CASE WHEN $2::jsonb ? 'extension_attributes'
            THEN coalesce(g.extension_attributes, '{}') ELSE w.extension_attributes END,
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision AND w.revision = $3
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
        AND NOT EXISTS (SELECT FROM repeated)
        AND EXISTS (SELECT FROM conditions c WHERE num_nonnulls(c.unknown_pointer, c.header_too_large) = 0)
    RETURNING w.id, w.revision, w.status, w.next_execution
), removed AS (
    DELETE FROM wfc.execution_pointers
    WHERE workflow_id = $1 AND id = ANY (ARRAY (
        SELECT r.id FROM updated, jsonb_array_elements_text($2::jsonb -> 'removed') AS r(id)))
), last AS MATERIALIZED (
    SELECT coalesce((SELECT ordinal FROM wfc.execution_pointers
        WHERE workflow_id = $1 ORDER BY ordinal DESC LIMIT 1), -1) AS ordinal
), pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes) AS (
    SELECT updated.id, last.ordinal + 1 + p.ordinal,
        p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
    FROM updated, last, given, jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
), written AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
    SELECT * FROM pointers
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        step_id = excluded.step_id,
        active = excluded.active,
        status = excluded.status,
        sleep_until = excluded.sleep_until,
        persistence_data = excluded.persistence_data,
        start_time = excluded.start_time,
        end_time = excluded.end_time,
        event_name = excluded.event_name,
        event_key = excluded.event_key,
        event_published = excluded.event_published,
        event_data = excluded.event_data,
        step_name = excluded.step_name,
        retry_count = excluded.retry_count,
        children = excluded.children,
        context_item = excluded.context_item,
        predecessor_id = excluded.predecessor_id,
        outcome = excluded.outcome,
        scope = excluded.scope,
        extension_attributes = excluded.extension_attributes
), subscribed AS (
    INSERT INTO wfc.event_subscriptions (
        id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry, content_hash)
    SELECT
        s.id, s.workflow_id, s.step_id, s.execution_pointer_id, s.event_name, s.event_key,
        s.subscribe_as_of, s.subscription_data -> 0, s.external_token, s.external_worker_id,
        s.external_token_expiry,
        s.content_hash
    FROM updated, subscriptions s
    WHERE NOT EXISTS (SELECT FROM existing e WHERE e.id = s.id)
    ORDER BY s.id
    RETURNING 1
), remembered AS (
    INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision)
    SELECT updated.id, $5::uuid, $6::bytea, updated.revision FROM updated
    WHERE $5::uuid IS NOT NULL
)
SELECT (SELECT revision FROM updated) AS revision,
    (SELECT revision FROM stored) AS stored_revision,
    (SELECT min(id) FROM existing WHERE NOT same) AS clashing_subscription,
    (SELECT revision FROM repeated) AS repeated_revision,
    (SELECT same FROM repeated) AS repeated_same,
    NULL AS unknown_claim,
    NULL AS lost_claim,
    NULL AS lost_lease,
    NULL AS unknown_subscription,
    NULL AS unknown_event,
    NULL AS existing_event,
    c.unknown_pointer AS unknown_pointer,
    NULL AS lost_lock,
    c.header_too_large AS header_too_large
FROM conditions c;
