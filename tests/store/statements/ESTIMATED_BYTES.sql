SELECT coalesce(sum(greatest(relpages, 0)), 0)::bigint * current_setting('block_size')::bigint
FROM pg_class;
