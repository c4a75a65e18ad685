SELECT setval('wfc.claim_epochs', $1::bigint) FROM wfc.claim_epochs WHERE last_value <= $1;
