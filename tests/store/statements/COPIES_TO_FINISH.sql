SELECT r.srrelid, 'pg_' || s.oid || '_sync_' || r.srrelid || '_'
    || (SELECT system_identifier FROM pg_control_system())
FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid AND r.srsubstate = 'f'
WHERE s.subname = $1
    AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database());
