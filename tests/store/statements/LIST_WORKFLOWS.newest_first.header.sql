WITH few AS MATERIALIZED (
    SELECT (SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE ($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            LIMIT CASE WHEN num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0 THEN 20000 ELSE 1000 END + 1
        ) w) <= CASE WHEN num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0 THEN 20000 ELSE 1000 END
        OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0 AND NOT ((
        ('Complete' = ANY ($1::text[])) IS FALSE
        OR $18 <= (SELECT count(*) FROM (
            SELECT FROM (
                SELECT * FROM wfc.workflows w
            WHERE w.status = 'Complete' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
                ORDER BY w.create_time DESC, w.id DESC LIMIT 50000
            ) w
            WHERE ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10) AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            LIMIT $18
        ) page)
        OR 50000 > (SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE w.status = 'Complete' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
            LIMIT 50000
        ) first_ones)) AND (
        ('Runnable' = ANY ($1::text[])) IS FALSE
        OR num_nonnulls($9, $10) > 0
        OR $18 <= (SELECT count(*) FROM (
            SELECT FROM (
                SELECT * FROM wfc.workflows w
            WHERE w.status = 'Runnable' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
                ORDER BY w.create_time DESC, w.id DESC LIMIT 50000
            ) w
            WHERE ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10) AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            LIMIT $18
        ) page)
        OR 50000 > (SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE w.status = 'Runnable' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
            LIMIT 50000
        ) first_ones)) AND (
        ('Suspended' = ANY ($1::text[])) IS FALSE
        OR num_nonnulls($9, $10) > 0
        OR $18 <= (SELECT count(*) FROM (
            SELECT FROM (
                SELECT * FROM wfc.workflows w
            WHERE w.status = 'Suspended' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
                ORDER BY w.create_time DESC, w.id DESC LIMIT 50000
            ) w
            WHERE ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10) AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            LIMIT $18
        ) page)
        OR 50000 > (SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE w.status = 'Suspended' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
            LIMIT 50000
        ) first_ones)) AND (
        ('Terminated' = ANY ($1::text[])) IS FALSE
        OR $18 <= (SELECT count(*) FROM (
            SELECT FROM (
                SELECT * FROM wfc.workflows w
            WHERE w.status = 'Terminated' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
                ORDER BY w.create_time DESC, w.id DESC LIMIT 50000
            ) w
            WHERE ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10) AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            LIMIT $18
        ) page)
        OR 50000 > (SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE w.status = 'Terminated' AND ($10::timestamptz IS NULL OR w.create_time < $10) AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz) AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
                AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
            LIMIT 50000
        ) first_ones))) AND (SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE ($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            LIMIT 200000 + 1
        ) w) <= 200000
        AS are_few
), page AS MATERIALIZED (
    SELECT * FROM (
        (
        SELECT w.* FROM wfc.workflows w
        WHERE ('Complete' = ANY ($1::text[])) IS NOT FALSE AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (NOT (($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)) OR NOT (SELECT are_few FROM few))
            AND w.status = 'Complete' AND ($10::timestamptz IS NULL OR w.create_time < $10)
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM wfc.workflows w
        WHERE ('Runnable' = ANY ($1::text[])) IS NOT FALSE AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (NOT (($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)) OR NOT (SELECT are_few FROM few))
            AND w.status = 'Runnable' AND ($10::timestamptz IS NULL OR w.create_time < $10)
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM wfc.workflows w
        WHERE ('Suspended' = ANY ($1::text[])) IS NOT FALSE AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (NOT (($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)) OR NOT (SELECT are_few FROM few))
            AND w.status = 'Suspended' AND ($10::timestamptz IS NULL OR w.create_time < $10)
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM wfc.workflows w
        WHERE ('Terminated' = ANY ($1::text[])) IS NOT FALSE AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (NOT (($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)) OR NOT (SELECT are_few FROM few))
            AND w.status = 'Terminated' AND ($10::timestamptz IS NULL OR w.create_time < $10)
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM wfc.workflows w
        WHERE $10 IS NOT NULL AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (NOT (($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)) OR NOT (SELECT are_few FROM few)) AND ($1::text[] IS NULL OR w.status = ANY ($1))
            AND w.complete_time < w.create_time AND w.create_time >= $10
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM wfc.workflows w
        WHERE $1 IS NULL AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (NOT (($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)) OR NOT (SELECT are_few FROM few))
            AND (w.status < 'Complete' OR w.status > 'Complete' AND w.status < 'Runnable' OR w.status > 'Runnable' AND w.status < 'Suspended' OR w.status > 'Suspended' AND w.status < 'Terminated' OR w.status > 'Terminated') AND ($10::timestamptz IS NULL OR w.create_time < $10)
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM (
            SELECT * FROM wfc.workflows w
            WHERE ($1::text[] IS NULL OR w.status = ANY ($1))
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
            OFFSET 0
        ) w
        WHERE ($2::text IS NOT NULL OR $3::int IS NOT NULL OR num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0)
            AND NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND (SELECT are_few FROM few)
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        ) UNION ALL (
        SELECT w.* FROM (
            SELECT c.id FROM (
                SELECT DISTINCT s.workflow_id AS id FROM wfc.event_subscriptions s
                WHERE s.event_name = $13::text AND ($14::text IS NULL OR s.event_key = $14)
                UNION ALL
                SELECT DISTINCT e.workflow_id FROM wfc.execution_errors e
                WHERE e.error_time >= $15::timestamptz
            ) c
            GROUP BY c.id HAVING count(*) = num_nonnulls($13::text, $15::timestamptz)
        ) chosen, LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = chosen.id LIMIT 1) w
        WHERE ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND ($1::text[] IS NULL OR w.status = ANY ($1))
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7::timestamptz)
            AND ($8::timestamptz IS NULL OR w.create_time < $8::timestamptz OR $17::text IS NOT NULL)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($17::text IS NULL
                OR (w.create_time, w.id) < ($16::timestamptz, $17))
        ORDER BY w.create_time DESC, w.id DESC
        LIMIT $18
        )
    ) first
    ORDER BY first.create_time DESC, first.id DESC
    LIMIT $18
), numbered AS (
    SELECT page.*, row_number() OVER (ORDER BY create_time DESC, id DESC) AS n
    FROM page
)
SELECT p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data, p.start_time,
        p.end_time, p.event_name, p.event_key, p.event_published, p.event_data, p.step_name,
        p.retry_count, nullif(p.children, '[]'), p.context_item, p.predecessor_id, p.outcome,
        nullif(p.scope, '[]'),
        CASE WHEN p.extension_attributes <> '{}' AND jsonb_typeof(p.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END,
    w.id, w.name, w.root_workflow_id, w.definition_id, w.version,
        CASE WHEN row_number() OVER pointers = 1 THEN w.description END,
        CASE WHEN row_number() OVER pointers = 1 THEN w.reference END, w.status,
        CASE WHEN row_number() OVER pointers = 1 THEN w.data END, w.next_execution, w.create_time,
        w.complete_time, w.revision,
        CASE WHEN row_number() OVER pointers = 1 THEN CASE WHEN w.extension_attributes <> '{}' AND jsonb_typeof(w.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(w.extension_attributes)) END END,
    w.n
FROM numbered w LEFT JOIN wfc.execution_pointers p ON FALSE
WINDOW pointers AS (PARTITION BY w.n ORDER BY p.ordinal)
ORDER BY w.n, p.ordinal;
