DELETE FROM wfc.locks l
WHERE resource = $1 AND ($2::bigint IS NULL OR epoch = $2) AND expiry > now()
RETURNING l.resource, l.owner, l.epoch, l.expiry, l.acquire_time;
