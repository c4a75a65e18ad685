-- Indexes for what is rare, old, or behind what is not asked for, in a store that has grown.
-- oldest server: 4

-- Lists of workflows that ended at a time, or have a version. No step changes either, so the updates of
-- one that goes on at once stay heap-only. Hardly any ended before it was created, by different clocks; a
-- list takes them from their own index, and goes by the times of creation for all others.
CREATE INDEX CONCURRENTLY {prefix}workflows_by_complete_time
    ON wfc.workflows USING btree (complete_time, id) WHERE (complete_time IS NOT NULL);
CREATE INDEX CONCURRENTLY {prefix}workflows_ended_early
    ON wfc.workflows USING btree (create_time, id) WHERE (complete_time < create_time);
CREATE INDEX CONCURRENTLY {prefix}workflows_by_version
    ON wfc.workflows USING btree (version, create_time, id);
-- Purges and rules of retention of one definition. Only the last step of a workflow writes it.
CREATE INDEX CONCURRENTLY {prefix}workflows_ended_by_definition
    ON wfc.workflows USING btree (definition_id, COALESCE(complete_time, create_time), id)
    WHERE (status = ANY (ARRAY['Complete'::text, 'Terminated'::text]));

-- Events of a name in the order of their times, also where the name is in old rows only.
CREATE INDEX CONCURRENTLY {prefix}events_by_name
    ON wfc.events USING btree (event_name, event_time, id);

-- Open is what has no token, and what has one that has expired. What is held is in neither place: an
-- index of both, such as the one before, has to be read past all that is held.
CREATE INDEX CONCURRENTLY {prefix}event_subscriptions_unheld
    ON wfc.event_subscriptions USING btree (event_name, event_key, subscribe_as_of, id)
    WHERE (external_token IS NULL);
CREATE INDEX CONCURRENTLY {prefix}event_subscriptions_unheld_by_name
    ON wfc.event_subscriptions USING btree (event_name, id) WHERE (external_token IS NULL);
CREATE INDEX CONCURRENTLY {prefix}event_subscriptions_by_expiry
    ON wfc.event_subscriptions USING btree (event_name, event_key, external_token_expiry)
    WHERE ((external_token IS NOT NULL) AND (external_token_expiry IS NOT NULL));
DROP INDEX wfc.event_subscriptions_open;

-- Commands likewise.
CREATE INDEX CONCURRENTLY {prefix}scheduled_commands_free
    ON wfc.scheduled_commands USING btree (execute_time, id) WHERE (lease_expiry IS NULL);
CREATE INDEX CONCURRENTLY {prefix}scheduled_commands_by_expiry
    ON wfc.scheduled_commands USING btree (lease_expiry) WHERE (lease_expiry IS NOT NULL);

-- Errors of a window of time, found without reading them.
CREATE INDEX CONCURRENTLY {prefix}execution_errors_by_time_and_id
    ON wfc.execution_errors USING btree (error_time, id);
DROP INDEX wfc.execution_errors_by_time;
