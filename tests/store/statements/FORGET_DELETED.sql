DELETE FROM wfc.placements
WHERE namespace = $1 AND move_phase = 'deleted'
    AND coalesce(jsonb_array_length(move_detail -> 'remains'), 0) = 0;
