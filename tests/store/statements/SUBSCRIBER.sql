SELECT s.oid, (SELECT system_identifier FROM pg_control_system())
FROM pg_subscription s WHERE s.subname = $1;
