SELECT coalesce(max(version), 0) FROM wfc.wfe_migrations;
