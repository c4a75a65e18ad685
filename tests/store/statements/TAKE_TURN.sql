SELECT pg_try_advisory_xact_lock(
    hashtextextended('wfe-persistence online ' || current_database() || $1, 0));
