UPDATE wfc.wfe_store SET database = $1, generation = $2, state = $3;
