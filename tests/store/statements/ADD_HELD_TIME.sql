ALTER TABLE wfc.wfe_migrations ADD COLUMN IF NOT EXISTS held_time timestamptz;
