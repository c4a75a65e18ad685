SELECT pg_advisory_xact_lock(
    hashtextextended('wfe-persistence create ' || current_database() || $1, 0));
