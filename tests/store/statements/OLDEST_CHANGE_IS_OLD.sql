SELECT publish_time < now() - $1::float8 * interval '1 second'
FROM wfc.workflow_changes
ORDER BY xid, n
LIMIT 1;
