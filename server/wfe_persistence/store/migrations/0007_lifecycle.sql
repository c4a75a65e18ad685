-- oldest server: 4
-- What happens to workflows, kept for a while for those who watch. Servers of version 4 do not use it.

-- The order is that of transactions: everything below the oldest one that has not ended is complete
-- and never changes. (A number alone is taken before its commit: who remembers the highest one misses
-- those that are committed later.) Rows are added at one end and deleted at the other, so vacuum has
-- to come often, and never finds much.
CREATE TABLE wfc.lifecycle_events (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    n bigint GENERATED ALWAYS AS IDENTITY,
    publish_time timestamptz NOT NULL DEFAULT now(),
    type text NOT NULL,
    workflow_id text NOT NULL,
    definition_id text NOT NULL,
    version int NOT NULL,
    reference text,
    event_time timestamptz NOT NULL,
    step_id int,
    step_name text,
    message text,
    CONSTRAINT {prefix}lifecycle_events_pkey PRIMARY KEY (xid, n)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.1);

-- What a cursor is valid for; at most one row, made by the first server that looks. Ids of
-- transactions mean something only in one PostgreSQL cluster and on one timeline: after a restore or a
-- failover, and after TRUNCATE, there is a new feed. Events up to the floor have been deleted.
CREATE TABLE wfc.lifecycle_feed (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    feed_id uuid NOT NULL DEFAULT gen_random_uuid(),
    cluster text NOT NULL,
    floor_xid xid8 NOT NULL DEFAULT '0',
    floor_n bigint NOT NULL DEFAULT 0
);
