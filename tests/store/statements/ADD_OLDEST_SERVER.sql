ALTER TABLE wfc.wfe_migrations ADD COLUMN IF NOT EXISTS oldest_server int;
