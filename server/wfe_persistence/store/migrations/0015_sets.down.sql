-- loses namespace sets: SELECT count(*) FROM wfc.namespace_sets
-- loses names held in namespace sets: SELECT count(*) FROM wfc.name_holders
DROP TABLE wfc.name_holders;
DROP TABLE wfc.namespace_sets;
