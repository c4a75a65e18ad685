WITH found AS MATERIALIZED (
    SELECT id, revision, $2::bigint IS NULL OR revision = $2 AS fits
    FROM wfc.workflows WHERE id = $1
), doomed AS MATERIALIZED (
    SELECT id FROM found WHERE fits
), locked_subscriptions AS MATERIALIZED (
    SELECT id FROM wfc.event_subscriptions WHERE workflow_id = ANY (ARRAY (SELECT id FROM doomed))
    ORDER BY id FOR UPDATE
), pointers AS (
    DELETE FROM wfc.execution_pointers WHERE workflow_id = ANY (ARRAY (SELECT id FROM doomed))
), subscriptions AS (
    DELETE FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM locked_subscriptions))
), errors AS (
    DELETE FROM wfc.execution_errors WHERE workflow_id = ANY (ARRAY (SELECT id FROM doomed))
), deleted AS (
    DELETE FROM wfc.workflows WHERE id = ANY (ARRAY (SELECT id FROM doomed))
)
SELECT revision, fits FROM found;
