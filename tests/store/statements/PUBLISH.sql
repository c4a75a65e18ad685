INSERT INTO wfc.lifecycle_events (type, workflow_id, definition_id, version, reference, event_time, step_id, step_name,
        message)
SELECT e.type, e.workflow_id, e.definition_id, e.version, e.reference, e.event_time, e.step_id,
        e.step_name, e.message
FROM ROWS FROM (
    jsonb_to_recordset($1::jsonb) AS (
        type text, workflow_id text, definition_id text, version int, reference text,
        event_time timestamptz, step_id int, step_name text, message text)
) WITH ORDINALITY AS e(type, workflow_id, definition_id, version, reference, event_time, step_id, step_name,
        message, i)
ORDER BY e.i;
