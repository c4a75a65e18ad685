SELECT pg_advisory_xact_lock(
    hashtextextended('wfe-persistence move ' || current_database() || $1, 0));
