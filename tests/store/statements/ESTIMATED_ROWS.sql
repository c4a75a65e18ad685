SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM unnest($1::text[]) t(name) JOIN pg_class c ON c.oid = to_regclass(t.name);
