-- Namespace sets; see store/namespace_set.py and store/name_holder.py. The tables are new, so the migration
-- takes some milliseconds and waits for nobody.
-- oldest server: 4

-- The sets of these servers. Only the rows in the default store of a server count.
CREATE TABLE wfc.namespace_sets (
    name text COLLATE "C" NOT NULL CONSTRAINT {prefix}namespace_sets_pkey PRIMARY KEY,
    members int NOT NULL,
    phase text NOT NULL DEFAULT 'creating',  -- creating, complete or deleting
    create_time timestamptz NOT NULL DEFAULT now()
);

-- In a member of a set: the workflows that hold names which belong here, wherever they are.
CREATE TABLE wfc.name_holders (
    name text COLLATE "C" NOT NULL CONSTRAINT {prefix}name_holders_pkey PRIMARY KEY,
    workflow_id text COLLATE "C" NOT NULL,
    claim_id text COLLATE "C" NOT NULL  -- another one with each claim
);
