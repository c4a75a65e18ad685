-- Whoever watches workflows lists them anew. What the sweep remembers, it finds out again.
-- loses changes of workflows that are kept for those who watch: SELECT count(*) FROM wfc.workflow_changes
DROP TRIGGER {prefix}workflows_change ON wfc.workflows;
DROP TRIGGER {prefix}workflows_gone ON wfc.workflows;
DROP TRIGGER {prefix}workflows_all_gone ON wfc.workflows;
DROP FUNCTION wfc.workflows_changed(), wfc.workflows_gone(), wfc.workflows_all_gone();
DROP TABLE wfc.workflow_changes, wfc.workflow_feed, wfc.sweeps;
DROP SEQUENCE wfc.workflow_recording;
