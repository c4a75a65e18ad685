-- Namespaces over many databases. Both changes are of small tables, so the migration takes some
-- milliseconds.
-- oldest server: 4

-- Which store it is, if there may be another one of the same owner: the name that its database has among
-- the servers, how often the namespace was created there or moved (0: it never was), and whether it is
-- used. A copy that is being made, or that was left behind, has another state than `active`.
ALTER TABLE wfc.wfe_store
    ADD COLUMN database text NOT NULL DEFAULT 'home',
    ADD COLUMN generation bigint NOT NULL DEFAULT 0,
    ADD COLUMN state text NOT NULL DEFAULT 'active';

-- Where the namespaces live that are not in the home database, and those that are being moved. It has rows
-- only in the default namespace. A namespace without a row is in the home database.
CREATE TABLE wfc.placements (
    namespace text COLLATE "C" NOT NULL,
    database text COLLATE "C" NOT NULL,
    generation bigint NOT NULL DEFAULT 0,  -- that of the store
    moving_to text COLLATE "C",  -- a database; NULL: it stays
    move_phase text COLLATE "C",  -- NULL: it can be used, and nothing is going on
    move_detail jsonb,
    changed timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT {prefix}placements_pkey PRIMARY KEY (namespace)
);
