INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server) VALUES ($1, $2, $3, $4);
