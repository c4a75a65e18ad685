SELECT publish_time < now() - $1::float8 * interval '1 second'
FROM wfc.lifecycle_events
ORDER BY xid, n
LIMIT 1;
