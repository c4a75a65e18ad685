-- oldest server: 4
-- The changes of workflows, for those who watch them, and what the sweep of lost work remembers.
-- Servers of older versions, and hosts of the original, need not know of it: triggers record their
-- writes too. On a store of any size it takes some milliseconds, once the transactions that write
-- workflows have ended: it adds triggers to that table and reads none of its rows.

-- Odd: changes are recorded. Each start of a recording has a number of its own, and so has each pause.
-- It is a sequence because a trigger must see it as it is at that moment, not as it was when its
-- statement took its snapshot; see store/workflow_changes.py. While nobody watches, nothing is written.
CREATE SEQUENCE wfc.workflow_recording MINVALUE 0 START 0;
DO $$ BEGIN PERFORM setval('wfc.workflow_recording', 0); END $$;

-- The order is that of transactions, as for lifecycle events. The header is not repeated here: who
-- reads a change reads the workflow as it is by then. Only if what a filter can ask for has changed,
-- or the workflow was deleted, the columns behind workflow_id have what it was before; else they are
-- NULL, which takes no space.
CREATE TABLE wfc.workflow_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    n bigint GENERATED ALWAYS AS IDENTITY,
    publish_time timestamptz NOT NULL DEFAULT now(),
    workflow_id text NOT NULL,
    name text,
    root_workflow_id text,
    definition_id text,
    version int,
    reference text,
    status text,
    create_time timestamptz,
    complete_time timestamptz,
    revision bigint,
    CONSTRAINT {prefix}workflow_changes_pkey PRIMARY KEY (xid, n)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.1);

-- What a cursor is valid for; at most one row, made by the first server that looks. It is valid for
-- the recording whose number it has, in the cluster that it names. Changes up to the floor are not
-- there (NULL: it is not known yet).
CREATE TABLE wfc.workflow_feed (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    feed_id uuid NOT NULL DEFAULT gen_random_uuid(),
    cluster text NOT NULL DEFAULT '',
    recording bigint NOT NULL DEFAULT -1,
    floor_xid xid8,
    floor_n bigint NOT NULL DEFAULT 0,
    watch_time timestamptz NOT NULL DEFAULT now()  -- when somebody watched last
);

-- They run with the privileges of the owner: whoever may write workflows needs none on these tables.
-- They look at the sequence once more for roles that may not read it, for which the conditions of the
-- triggers are NULL.
CREATE FUNCTION wfc.workflows_changed() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_sequence_last_value('wfc.workflow_recording') % 2 = 0 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF (OLD.name, OLD.root_workflow_id, OLD.definition_id, OLD.version, OLD.reference, OLD.status)
            IS DISTINCT FROM
            (NEW.name, NEW.root_workflow_id, NEW.definition_id, NEW.version, NEW.reference, NEW.status)
        THEN
            INSERT INTO wfc.workflow_changes (workflow_id, name, root_workflow_id, definition_id,
                version, reference, status, create_time, complete_time, revision)
            VALUES (OLD.id, OLD.name, OLD.root_workflow_id, OLD.definition_id,
                OLD.version, OLD.reference, OLD.status, OLD.create_time, OLD.complete_time,
                OLD.revision);
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO wfc.workflow_changes (workflow_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE FUNCTION wfc.workflows_gone() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_sequence_last_value('wfc.workflow_recording') % 2 = 0 THEN
        RETURN NULL;
    END IF;
    INSERT INTO wfc.workflow_changes (workflow_id, name, root_workflow_id, definition_id,
        version, reference, status, create_time, complete_time, revision)
    SELECT id, name, root_workflow_id, definition_id, version, reference, status, create_time,
        complete_time, revision
    FROM gone;
    RETURN NULL;
END
$$;
-- All at once: whoever watches must list anew.
CREATE FUNCTION wfc.workflows_all_gone() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM wfc.workflow_feed;
    RETURN NULL;
END
$$;

-- While nothing is recorded, the conditions cost next to nothing.
CREATE TRIGGER {prefix}workflows_change AFTER INSERT OR UPDATE ON wfc.workflows
    FOR EACH ROW WHEN (pg_sequence_last_value('wfc.workflow_recording') % 2 IS DISTINCT FROM 0)
    EXECUTE FUNCTION wfc.workflows_changed();
CREATE TRIGGER {prefix}workflows_gone AFTER DELETE ON wfc.workflows
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT WHEN (pg_sequence_last_value('wfc.workflow_recording') % 2 IS DISTINCT FROM 0)
    EXECUTE FUNCTION wfc.workflows_gone();
CREATE TRIGGER {prefix}workflows_all_gone BEFORE TRUNCATE ON wfc.workflows
    FOR EACH STATEMENT EXECUTE FUNCTION wfc.workflows_all_gone();

-- Of the sweep that finds work which is in no queue: for each kind of queue, when it is due again and
-- up to where it has come.
CREATE TABLE wfc.sweeps (
    kind text COLLATE "C" NOT NULL,
    next_time timestamptz NOT NULL DEFAULT now(),
    after_number bigint,  -- of a workflow: next_execution
    after_time timestamptz,  -- of an event: event_time
    after_id text,
    CONSTRAINT {prefix}sweeps_pkey PRIMARY KEY (kind)
);
