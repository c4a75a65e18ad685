SELECT set_config(name, value, true)
FROM pg_settings JOIN (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'), ('lock_timeout', '0'),
    ('search_path', 'pg_catalog'), ('standard_conforming_strings', 'on')) AS wanted (name, value)
    USING (name);
