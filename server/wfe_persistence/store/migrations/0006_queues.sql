-- Queues of work: enqueue, dequeue under a lease, acknowledge.
-- oldest server: 4

-- A lease is a later visible_time, so an item under one is not even looked at, and comes back when
-- the lease expires without anybody's help: leased is an item with a lease_id and a visible_time to
-- come.
CREATE SEQUENCE wfc.queue_item_numbers;
CREATE TABLE wfc.queue_items (
    n bigint NOT NULL DEFAULT nextval('wfc.queue_item_numbers'),  -- the order of arrival
    queue text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    payload jsonb,
    blocked_by text[] NOT NULL DEFAULT '{}',  -- resources of locks
    visible_time timestamptz NOT NULL,
    dead boolean NOT NULL DEFAULT FALSE,
    attempt int NOT NULL DEFAULT 0,
    lease_id text,
    lease_worker_id text,
    lease_epoch bigint,
    again_time timestamptz,  -- enqueued since it was handed out: for when
    CONSTRAINT {prefix}queue_items_pkey PRIMARY KEY (n),
    CONSTRAINT {prefix}queue_items_queue_id_key UNIQUE (queue, id)
) WITH (
    -- Every row is written a few times and deleted, so vacuum soon and do not tire of it: what
    -- matters is how much is dead beside what lives at the moment, which may be nothing.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_cost_limit = 2000,
    autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX {prefix}queue_items_in_order ON wfc.queue_items (queue, dead, visible_time, n);

-- Only queues that were configured have a row.
CREATE TABLE wfc.queues (
    name text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    max_attempts int,  -- NULL: without end
    CONSTRAINT {prefix}queues_pkey PRIMARY KEY (name)
);
