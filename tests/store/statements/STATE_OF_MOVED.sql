UPDATE wfc.wfe_store SET state = $1;
