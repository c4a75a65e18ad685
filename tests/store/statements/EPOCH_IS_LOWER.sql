SELECT last_value < $1 OR (last_value = $1 AND NOT is_called) FROM wfc.claim_epochs;
