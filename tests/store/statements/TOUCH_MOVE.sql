UPDATE wfc.placements SET move_detail = move_detail || $3::jsonb, changed = now()
WHERE namespace = $1 AND move_phase IS NOT NULL AND move_detail ->> 'epoch' = $2;
