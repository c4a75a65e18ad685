UPDATE wfc.workflow_feed SET watch_time = now();
