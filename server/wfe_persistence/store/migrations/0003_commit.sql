-- Whole steps in one commit, patches whose cost is that of the change, claims with epochs, lists and
-- purges.

-- Pointers in their order, for pages and for the place behind the last one; and those that can still
-- run, however many have ended. The condition is that of WorkflowView ACTIVE.
CREATE INDEX {prefix}execution_pointers_ordered ON wfc.execution_pointers (workflow_id, ordinal);
CREATE INDEX {prefix}execution_pointers_active ON wfc.execution_pointers (workflow_id, ordinal)
    WHERE active
        OR status IN ('Pending', 'Running', 'Sleeping', 'WaitingForEvent', 'PendingPredecessor');

-- What a write with a request id came to, for the same request after a lost answer. A workflow's rows
-- are written under the lock of its row.
CREATE TABLE wfc.requests (
    workflow_id text NOT NULL,
    request_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    revision bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workflow_id, request_id)
);
CREATE INDEX {prefix}requests_by_time ON wfc.requests (create_time);

-- Claims: one sequence for the store, so that a claim's epoch is higher than all before it even where
-- the claimed row was deleted and made anew. A claim by the original gets one from the trigger, whose
-- condition never holds for this server's own statements.
CREATE SEQUENCE wfc.claim_epochs;
ALTER TABLE wfc.scheduled_commands ADD COLUMN lease_epoch bigint NOT NULL DEFAULT 0;
ALTER TABLE wfc.event_subscriptions
    ADD COLUMN external_token_epoch bigint NOT NULL DEFAULT 0;
CREATE FUNCTION wfc.event_subscriptions_claimed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.external_token_epoch := nextval('wfc.claim_epochs');
    RETURN NEW;
END
$$;
CREATE TRIGGER {prefix}event_subscriptions_claimed
    BEFORE UPDATE OF external_token ON wfc.event_subscriptions
    FOR EACH ROW WHEN (NEW.external_token IS NOT NULL
        AND NEW.external_token IS DISTINCT FROM OLD.external_token
        AND NEW.external_token_epoch = OLD.external_token_epoch)
    EXECUTE FUNCTION wfc.event_subscriptions_claimed();

-- Lists, and what ended or happened first for the purges. Every index here costs each persist, so
-- there are few: lists go by status, all four of them if none is asked for, and the index of the
-- names serves prefixes once it is in the order of bytes.
DROP TRIGGER {prefix}workflows_default_name ON wfc.workflows;
DROP TRIGGER {prefix}workflows_foreign_update ON wfc.workflows;
ALTER TABLE wfc.workflows ALTER COLUMN name TYPE text COLLATE "C";
CREATE TRIGGER {prefix}workflows_default_name BEFORE INSERT ON wfc.workflows
    FOR EACH ROW WHEN (NEW.name IS NULL OR NEW.name = '')
    EXECUTE FUNCTION wfc.workflows_default_name();
CREATE TRIGGER {prefix}workflows_foreign_update BEFORE UPDATE ON wfc.workflows
    FOR EACH ROW WHEN (NEW.revision = OLD.revision OR NEW.name IS NULL OR NEW.name = '')
    EXECUTE FUNCTION wfc.workflows_foreign_update();
CREATE INDEX {prefix}workflows_by_status ON wfc.workflows (status, create_time, id);
CREATE INDEX {prefix}workflows_by_definition ON wfc.workflows (definition_id, create_time, id);
CREATE INDEX {prefix}workflows_by_reference ON wfc.workflows (reference)
    WHERE reference IS NOT NULL;
CREATE INDEX {prefix}workflows_by_root ON wfc.workflows (root_workflow_id)
    WHERE root_workflow_id IS NOT NULL;
CREATE INDEX {prefix}workflows_ended
    ON wfc.workflows ((coalesce(complete_time, create_time)), id)
    WHERE status IN ('Complete', 'Terminated');
CREATE INDEX {prefix}events_by_time ON wfc.events (event_time, id);
CREATE INDEX {prefix}event_subscriptions_by_key
    ON wfc.event_subscriptions (event_name, event_key, id);
CREATE INDEX {prefix}execution_errors_by_time ON wfc.execution_errors (error_time);
