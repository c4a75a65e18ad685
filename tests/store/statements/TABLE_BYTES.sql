SELECT coalesce(pg_relation_size(to_regclass($1)), 0);
