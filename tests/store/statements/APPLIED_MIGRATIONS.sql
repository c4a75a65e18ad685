SELECT version, name, checksum, applied_at FROM wfc.wfe_migrations ORDER BY version;
