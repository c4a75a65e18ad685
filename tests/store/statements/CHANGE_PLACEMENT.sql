UPDATE wfc.placements SET database = $2, generation = $3::bigint, moving_to = $4, move_phase = $5,
    move_detail = coalesce($6::jsonb, move_detail), changed = now()
WHERE namespace = $1 AND database = $7 AND generation = $8::bigint
    AND move_phase IS NOT DISTINCT FROM $9;
