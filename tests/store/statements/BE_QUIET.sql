SELECT set_config(name, value, true)
FROM pg_settings JOIN (VALUES ('log_statement', 'none'), ('log_min_duration_statement', '-1'),
    ('log_min_duration_sample', '-1'), ('log_duration', 'off'),
    ('log_transaction_sample_rate', '0'), ('log_min_error_statement', 'panic'),
    ('log_error_verbosity', 'terse'))
    AS wanted (name, value) USING (name)
WHERE pg_catalog.has_parameter_privilege(name, 'SET');
