SELECT pg_database_size(current_database()), current_setting('server_version');
