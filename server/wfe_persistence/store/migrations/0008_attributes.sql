-- Additional attributes of workflows, as execution pointers have.

-- oldest server: 4

-- A server that does not know them, and hosts of the original, write the other columns of a workflow only.
ALTER TABLE wfc.workflows ADD COLUMN extension_attributes jsonb NOT NULL DEFAULT '{}';
