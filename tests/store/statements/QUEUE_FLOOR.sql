SELECT least(now() - interval '250 milliseconds', (
    SELECT visible_time FROM wfc.queue_items
    WHERE queue = $1 AND NOT dead AND visible_time >= $2 AND visible_time <= now()
    ORDER BY visible_time, n
    LIMIT 1
));
