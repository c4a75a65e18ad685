SELECT name FROM unnest($1::text[]) name
WHERE name NOT IN (SELECT slot_name FROM pg_replication_slots);
