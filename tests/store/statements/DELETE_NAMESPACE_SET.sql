DELETE FROM wfc.namespace_sets WHERE name = $1;
