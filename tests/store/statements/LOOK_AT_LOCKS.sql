SELECT l.resource, (extract(epoch FROM l.expiry - now()) * 1000)::bigint
FROM unnest($1::text[]) AS g(resource), LATERAL (
    SELECT resource, expiry FROM wfc.locks WHERE resource = g.resource LIMIT 1
) l
WHERE l.expiry > now();
