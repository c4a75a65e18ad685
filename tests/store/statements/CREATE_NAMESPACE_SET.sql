INSERT INTO wfc.namespace_sets (name, members) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING;
