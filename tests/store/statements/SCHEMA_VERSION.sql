SELECT version, coalesce((to_jsonb(wfe_migrations) ->> 'oldest_server')::int, version)
FROM wfc.wfe_migrations AS wfe_migrations ORDER BY version DESC LIMIT 1;
