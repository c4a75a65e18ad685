UPDATE wfc.wfe_migrations SET held_time = now() WHERE version = $1;
