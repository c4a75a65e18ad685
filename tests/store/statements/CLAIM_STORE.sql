INSERT INTO wfc.wfe_store (owner_schema, namespace) VALUES ($1, $2) ON CONFLICT DO NOTHING;
