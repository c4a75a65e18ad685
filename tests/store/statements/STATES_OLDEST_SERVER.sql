SELECT EXISTS (SELECT FROM pg_attribute
    WHERE attrelid = 'wfc.wfe_migrations'::regclass AND attname = 'oldest_server');
