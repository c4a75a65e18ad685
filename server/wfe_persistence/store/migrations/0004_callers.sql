-- No caller can hurt another: what the server must know about a store to keep callers apart.

-- Whose store it is: that of the servers started with `--schema <owner_schema>`, under this name.
-- Without it, the namespace `test` of `--schema app` and the store of `--schema app_test` could not be
-- told apart. There is at most one row; none: a store that is older than this table, and that no
-- server has claimed yet.
CREATE TABLE wfc.wfe_store (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    owner_schema text NOT NULL,
    namespace text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);

-- Revisions of an id never come again: a write that expects a revision of a deleted workflow must not
-- find it in another workflow that was given the same id since. So no workflow starts at or below
-- the highest revision that any deleted one had: the floor. It is a sequence because a sequence is
-- read as it is at that moment, whatever the snapshot. In a store in which nothing was ever deleted,
-- it is 0, and every workflow starts at revision 1.
CREATE SEQUENCE wfc.revision_floor MINVALUE 0 START 0;
DO $$ BEGIN PERFORM setval('wfc.revision_floor', 0); END $$;
ALTER TABLE wfc.workflows ADD COLUMN first_revision bigint NOT NULL DEFAULT 1;

-- Raising the floor must not lower it again after another has raised it higher: so one at a time, up
-- to the end of the transaction. It is rare: whoever is created after that starts above the floor, so
-- it happens about once in the lifetime of a workflow, however many are deleted. It is the last that
-- a DELETE does, so that nobody waits for one who waits here.
CREATE FUNCTION wfc.raise_revision_floor(highest bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- No number of writes gets near the end; a revision that other software has set there must not
    -- leave new workflows without any. (NULL: nothing was deleted.)
    IF highest > 9223372032559808511 THEN
        highest := 4611686018427387904;
    END IF;
    IF highest > (SELECT last_value FROM wfc.revision_floor) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(
            'wfe-persistence revision_floor', 'wfc.revision_floor'::regclass::oid::bigint));
        PERFORM setval('wfc.revision_floor', greatest(highest, last_value))
            FROM wfc.revision_floor;
    END IF;
END
$$;
-- The idempotency keys of a deleted workflow go with it, whoever deletes it: they must not be those of
-- another workflow with the same id.
CREATE FUNCTION wfc.workflows_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM wfc.requests WHERE ctid = ANY (ARRAY (
        SELECT r.ctid FROM deleted d, LATERAL (
            SELECT ctid FROM wfc.requests WHERE workflow_id = d.id FOR UPDATE SKIP LOCKED
        ) r));
    PERFORM wfc.raise_revision_floor((SELECT max(revision) FROM deleted));
    RETURN NULL;
END
$$;
CREATE TRIGGER {prefix}workflows_deleted AFTER DELETE ON wfc.workflows
    REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION wfc.workflows_deleted();
CREATE FUNCTION wfc.workflows_truncated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM wfc.requests;
    PERFORM wfc.raise_revision_floor((SELECT max(revision) FROM wfc.workflows));
    RETURN NULL;
END
$$;
CREATE TRIGGER {prefix}workflows_truncated BEFORE TRUNCATE ON wfc.workflows
    FOR EACH STATEMENT EXECUTE FUNCTION wfc.workflows_truncated();

-- A new workflow, the original's too, starts above the floor. The conditions call the function that
-- the view pg_sequences shows as last_value, which costs next to nothing; it is NULL only for a role
-- that may not read the sequence, and then the trigger fails.
CREATE FUNCTION wfc.workflows_first_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT last_value + 1 INTO NEW.revision FROM wfc.revision_floor;
    NEW.first_revision := NEW.revision;
    RETURN NEW;
END
$$;
CREATE TRIGGER {prefix}workflows_first_revision BEFORE INSERT ON wfc.workflows
    FOR EACH ROW
    WHEN (NEW.revision <= coalesce(pg_sequence_last_value('wfc.revision_floor'), NEW.revision))
    EXECUTE FUNCTION wfc.workflows_first_revision();

-- An INSERT may have waited, after that, for a DELETE of the same id to be committed. It had raised
-- the floor before. So the floor is compared once more now that the id is taken, and with it the
-- floor can't be raised by another workflow of this id.
CREATE FUNCTION wfc.workflows_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    lowest bigint := (SELECT last_value + 1 FROM wfc.revision_floor);
BEGIN
    UPDATE wfc.workflows SET revision = lowest, first_revision = lowest
        WHERE id = NEW.id AND revision < lowest;
    RETURN NULL;
END
$$;
CREATE TRIGGER {prefix}workflows_inserted AFTER INSERT ON wfc.workflows
    FOR EACH ROW
    WHEN (NEW.revision <= coalesce(pg_sequence_last_value('wfc.revision_floor'), NEW.revision))
    EXECUTE FUNCTION wfc.workflows_inserted();
