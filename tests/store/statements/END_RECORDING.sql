WITH unwatched AS (
    UPDATE wfc.workflow_feed SET recording = -1
    WHERE watch_time < now() - $1::float8 * interval '1 second' AND pg_sequence_last_value('wfc.workflow_recording') % 2 = 1
    RETURNING only_row
)
SELECT setval('wfc.workflow_recording', (pg_sequence_last_value('wfc.workflow_recording') | 1) + 1) FROM unwatched;
