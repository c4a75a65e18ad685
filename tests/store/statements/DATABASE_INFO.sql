SELECT current_setting('server_version'), current_setting('server_version_num')::int,
    current_setting('server_encoding'),
    current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off';
