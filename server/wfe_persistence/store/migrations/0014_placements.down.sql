-- loses placements of namespaces: SELECT count(*) FROM wfc.placements
-- loses which database a store is in: SELECT count(*) FROM wfc.wfe_store WHERE generation <> 0
DROP TABLE wfc.placements;
ALTER TABLE wfc.wfe_store DROP COLUMN database, DROP COLUMN generation, DROP COLUMN state;
