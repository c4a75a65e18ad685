DELETE FROM wfc.retention_rules;
