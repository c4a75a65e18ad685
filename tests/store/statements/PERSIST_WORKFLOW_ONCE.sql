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
), updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        root_workflow_id = g.root_workflow_id,
        definition_id = g.definition_id,
        version = g.version,
        description = g.description,
        reference = g.reference,
        status = g.status,
        data = g.data -> 0,
        next_execution = g.next_execution,
        create_time = g.create_time,
        complete_time = g.complete_time,
        extension_attributes = coalesce(g.extension_attributes, w.extension_attributes),
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision AND ($3::bigint IS NULL OR w.revision = $3)
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
        AND NOT EXISTS (SELECT FROM repeated)
    RETURNING w.id, w.revision, w.status, w.next_execution
), pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes) AS MATERIALIZED (
    SELECT updated.id, p.ordinal,
        p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
    FROM updated, given, jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
), removed AS (
    DELETE FROM wfc.execution_pointers p USING updated
    WHERE p.workflow_id = updated.id AND NOT EXISTS (SELECT FROM pointers g WHERE g.id = p.id)
), written AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
    SELECT * FROM pointers WHERE id IN (
        SELECT id FROM (
            SELECT ordinal,
                id, step_id, active, status, sleep_until, persistence_data::text, start_time,
                end_time, event_name, event_key, event_published, event_data::text, step_name,
                retry_count, children, context_item::text, predecessor_id, outcome::text, scope,
                extension_attributes::text
            FROM pointers
            EXCEPT
            SELECT ordinal,
                id, step_id, active, status, sleep_until, persistence_data::text, start_time,
                end_time, event_name, event_key, event_published, event_data::text, step_name,
                retry_count, children, context_item::text, predecessor_id, outcome::text, scope,
                extension_attributes::text
            FROM wfc.execution_pointers WHERE workflow_id = (SELECT $1::text)
        ) AS changed
    )
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        ordinal = excluded.ordinal,
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
), forgotten AS (
    DELETE FROM wfc.requests WHERE ctid = ANY (ARRAY (
        SELECT r.ctid FROM updated, LATERAL (
            SELECT ctid FROM wfc.requests
            WHERE create_time < now() - interval '3600 seconds'
            ORDER BY create_time LIMIT 2 FOR UPDATE SKIP LOCKED
        ) r WHERE $5::uuid IS NOT NULL))
)
SELECT (SELECT revision FROM updated) AS revision,
    (SELECT revision FROM stored) AS stored_revision,
    (SELECT min(id) FROM existing WHERE NOT same) AS clashing_subscription,
    (SELECT revision FROM repeated) AS repeated_revision,
    (SELECT same FROM repeated) AS repeated_same;
