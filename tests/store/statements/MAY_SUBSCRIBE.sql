SELECT pg_has_role('pg_create_subscription', 'USAGE');
