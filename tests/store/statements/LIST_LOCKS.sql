SELECT l.resource, l.owner, l.epoch, l.expiry, l.acquire_time
FROM wfc.locks l
WHERE expiry > now()
    AND ($1::text IS NULL OR resource LIKE $1)
    AND ($2::text IS NULL OR owner = $2)
    AND ($3::text IS NULL OR resource > $3)
ORDER BY resource
LIMIT $4;
