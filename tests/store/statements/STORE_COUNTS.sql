SELECT 'workflows', s.status, (SELECT count(*) FROM (
        SELECT FROM wfc.workflows w WHERE w.status = s.status LIMIT $1) w)
    FROM unnest(ARRAY['Runnable', 'Suspended', 'Complete', 'Terminated']) s(status)
UNION ALL
SELECT 'runnable', '', count(*) FROM (
    SELECT FROM wfc.workflows WHERE status = 'Runnable'
        AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint LIMIT $1) w
UNION ALL
SELECT 'oldest_runnable_ms', '', greatest(coalesce(
    floor(extract(epoch FROM now()) * 1000)::bigint - (
        SELECT min(greatest(w.next_execution,
            floor(extract(epoch FROM coalesce(w.last_heartbeat_at, w.create_time)) * 1000)::bigint))
        FROM (
            SELECT next_execution, last_heartbeat_at, create_time FROM wfc.workflows
            WHERE status = 'Runnable'
                AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint
            ORDER BY next_execution, id LIMIT 1000) w), 0), 0)
UNION ALL
SELECT 'events', '', count(*) FROM (
    SELECT FROM wfc.events WHERE NOT is_processed LIMIT $1) e
UNION ALL
SELECT 'subscriptions', s.state, count(*) FROM (
    SELECT CASE WHEN external_token IS NOT NULL
            AND (external_token_expiry IS NULL OR external_token_expiry > now()) THEN 'held' ELSE 'open' END AS state
    FROM wfc.event_subscriptions LIMIT $1) s GROUP BY s.state
UNION ALL
SELECT 'commands', c.state, count(*) FROM (
    SELECT CASE WHEN lease_expiry > now() THEN 'leased'
            WHEN execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint THEN 'due'
            ELSE 'scheduled' END AS state
    FROM wfc.scheduled_commands LIMIT $1) c GROUP BY c.state
UNION ALL
SELECT 'queue_items', q.state, count(*) FROM (
    SELECT CASE WHEN dead THEN 'dead' WHEN visible_time <= now() THEN 'waiting'
            WHEN lease_id IS NULL THEN 'delayed' ELSE 'leased' END AS state
    FROM wfc.queue_items LIMIT $1) q GROUP BY q.state;
