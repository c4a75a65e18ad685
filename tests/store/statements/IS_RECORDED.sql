SELECT pg_sequence_last_value('wfc.workflow_recording') % 2 = 1,
    (SELECT watch_time < now() - $1::float8 * interval '1 second' FROM wfc.workflow_feed);
