SELECT version, name, checksum, applied_at, coalesce((to_jsonb(wfe_migrations) ->> 'oldest_server')::int, version),
    (to_jsonb(wfe_migrations) ->> 'held_time') IS NOT NULL
FROM wfc.wfe_migrations AS wfe_migrations ORDER BY version;
