UPDATE wfc.workflow_feed SET feed_id = gen_random_uuid(), cluster = '', recording = -1;
