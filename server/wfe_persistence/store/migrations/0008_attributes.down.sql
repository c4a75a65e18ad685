-- loses workflows with extension attributes: SELECT count(*) FROM wfc.workflows WHERE extension_attributes <> '{}'
ALTER TABLE wfc.workflows DROP COLUMN extension_attributes;
