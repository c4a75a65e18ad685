UPDATE wfc.namespace_sets SET phase = $2 WHERE name = $1;
