SELECT pg_advisory_xact_lock(hashtextextended(
    'wfe-persistence import errors', 'wfc.execution_errors'::regclass::oid::bigint));
