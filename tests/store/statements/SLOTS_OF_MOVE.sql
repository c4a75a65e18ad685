SELECT slot_name, active_pid FROM pg_replication_slots
WHERE slot_name = $1 OR slot_name LIKE $2;
