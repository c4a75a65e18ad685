DELETE FROM wfc.wfe_migrations WHERE version = $1;
