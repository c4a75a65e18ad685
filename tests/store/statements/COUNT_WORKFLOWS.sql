SELECT w.status, count(*) FROM (
        SELECT w.status FROM wfc.workflows w
        WHERE NOT ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND ($1::text[] IS NULL OR w.status = ANY ($1)) AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7)
            AND ($8::timestamptz IS NULL OR w.create_time < $8)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
        UNION ALL
        SELECT w.status FROM (
            SELECT c.id FROM (
                SELECT DISTINCT s.workflow_id AS id FROM wfc.event_subscriptions s
                WHERE s.event_name = $13::text AND ($14::text IS NULL OR s.event_key = $14)
                UNION ALL
                SELECT DISTINCT e.workflow_id FROM wfc.execution_errors e
                WHERE e.error_time >= $15::timestamptz
            ) c
            GROUP BY c.id HAVING count(*) = num_nonnulls($13::text, $15::timestamptz)
        ) chosen, LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = chosen.id LIMIT 1) w
        WHERE ($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL) AND ($1::text[] IS NULL OR w.status = ANY ($1)) AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7)
            AND ($8::timestamptz IS NULL OR w.create_time < $8)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
) w GROUP BY w.status;
