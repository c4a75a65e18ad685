-- loses rules of retention: SELECT count(*) FROM wfc.retention_rules
DROP TABLE wfc.retention_rules;
