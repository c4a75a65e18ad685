-- Tables whose rows come and go: how they are found, and cleared away, when hardly any is left.
-- oldest server: 4

-- The statistics of a queue that is drained say that there are no rows. Then all indexes look alike to
-- the planner: it was seen to look up an item by its id, or its number, in this one, reading all that is
-- in the queue. A partial index can only be used by a statement with a condition on visible_time; so
-- those that look up one item have none.
DROP INDEX wfc.queue_items_in_order;
CREATE INDEX {prefix}queue_items_in_order ON wfc.queue_items (queue, dead, visible_time, n)
    WHERE visible_time IS NOT NULL;

-- Vacuum comes after so many dead rows, however many live in the backlog; it goes over all indexes, so
-- not too often. It keeps the empty end of the table, which fills again at once: cutting it off needs an
-- exclusive lock, and a table without pages looks to the planner as if it were best read as a whole.
ALTER TABLE wfc.queue_items SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    vacuum_truncate = off
);
ALTER TABLE wfc.locks SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    vacuum_truncate = off
);
-- A command is claimed and deleted, so there is nothing to be kept for the next version of a row.
ALTER TABLE wfc.scheduled_commands SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_limit = 1000,
    vacuum_truncate = off
);
-- Keys of requests and lifecycle events are kept for a time and then deleted, as many as come. So what is
-- dead is a small part of the table; a fixed number would have vacuum go over a large index for little.
ALTER TABLE wfc.requests SET (autovacuum_vacuum_scale_factor = 0.05, vacuum_truncate = off);
ALTER TABLE wfc.lifecycle_events SET (vacuum_truncate = off);
