SELECT pubname FROM pg_publication
WHERE starts_with(pubname, 'wfe_move_check_') AND (pubname = $1 OR NOT EXISTS (
    SELECT FROM pg_stat_activity WHERE pubname = 'wfe_move_check_' || pid));
