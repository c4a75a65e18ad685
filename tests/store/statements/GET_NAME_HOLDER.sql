SELECT workflow_id, claim_id FROM wfc.name_holders WHERE name = $1;
