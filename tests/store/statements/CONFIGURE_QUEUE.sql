INSERT INTO wfc.queues (name, kind, max_attempts) VALUES ($1, $2, nullif($3::int, 0))
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, max_attempts = excluded.max_attempts;
