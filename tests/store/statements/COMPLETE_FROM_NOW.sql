UPDATE wfc.workflow_feed
SET floor_xid = pg_snapshot_xmin(pg_current_snapshot()), watch_time = now()
WHERE recording = $1 AND floor_xid IS NULL;
