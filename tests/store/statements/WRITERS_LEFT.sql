SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
        AND relation = 'wfc.workflows'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND virtualtransaction = ANY ($1::text[])
);
