-- loses lifecycle events: SELECT count(*) FROM wfc.lifecycle_events
DROP TABLE wfc.lifecycle_events, wfc.lifecycle_feed;
