SELECT pg_try_advisory_xact_lock(
    hashtextextended('wfe-persistence set ' || current_database() || $1, 0));
