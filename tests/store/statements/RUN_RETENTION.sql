UPDATE wfc.retention_rules SET next_time = now(), after_time = NULL, after_id = NULL;
