SELECT set_config('lock_timeout', '20ms', TRUE);
