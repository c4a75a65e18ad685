-- The indexes of 0003 whose columns are there before it: on a large store they are built first, and
-- nobody waits. (0003 itself says nothing of that, and a released migration does not change.) They are
-- written as PostgreSQL shows them, by which an index that is there already is recognized.
CREATE INDEX CONCURRENTLY {prefix}execution_pointers_ordered
    ON wfc.execution_pointers USING btree (workflow_id, ordinal);
CREATE INDEX CONCURRENTLY {prefix}execution_pointers_active
    ON wfc.execution_pointers USING btree (workflow_id, ordinal)
    WHERE (active OR (status = ANY (ARRAY['Pending'::text, 'Running'::text, 'Sleeping'::text, 'WaitingForEvent'::text, 'PendingPredecessor'::text])));
CREATE INDEX CONCURRENTLY {prefix}workflows_by_status
    ON wfc.workflows USING btree (status, create_time, id);
CREATE INDEX CONCURRENTLY {prefix}workflows_by_definition
    ON wfc.workflows USING btree (definition_id, create_time, id);
CREATE INDEX CONCURRENTLY {prefix}workflows_by_reference
    ON wfc.workflows USING btree (reference) WHERE (reference IS NOT NULL);
CREATE INDEX CONCURRENTLY {prefix}workflows_by_root
    ON wfc.workflows USING btree (root_workflow_id) WHERE (root_workflow_id IS NOT NULL);
CREATE INDEX CONCURRENTLY {prefix}workflows_ended
    ON wfc.workflows USING btree (COALESCE(complete_time, create_time), id)
    WHERE (status = ANY (ARRAY['Complete'::text, 'Terminated'::text]));
CREATE INDEX CONCURRENTLY {prefix}events_by_time
    ON wfc.events USING btree (event_time, id);
CREATE INDEX CONCURRENTLY {prefix}event_subscriptions_by_key
    ON wfc.event_subscriptions USING btree (event_name, event_key, id);
CREATE INDEX CONCURRENTLY {prefix}execution_errors_by_time
    ON wfc.execution_errors USING btree (error_time);
