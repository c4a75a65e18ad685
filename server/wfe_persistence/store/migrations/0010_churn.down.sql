DROP INDEX wfc.queue_items_in_order;
CREATE INDEX {prefix}queue_items_in_order ON wfc.queue_items (queue, dead, visible_time, n);
ALTER TABLE wfc.queue_items
    SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000),
    RESET (vacuum_truncate);
ALTER TABLE wfc.locks
    SET (autovacuum_vacuum_scale_factor = 0.02),
    RESET (autovacuum_vacuum_threshold, vacuum_truncate);
ALTER TABLE wfc.scheduled_commands RESET (autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold, autovacuum_vacuum_cost_limit, vacuum_truncate);
ALTER TABLE wfc.requests RESET (autovacuum_vacuum_scale_factor, vacuum_truncate);
ALTER TABLE wfc.lifecycle_events RESET (vacuum_truncate);
