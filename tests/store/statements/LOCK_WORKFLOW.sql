SELECT FROM wfc.workflows WHERE id = $1 FOR UPDATE;
