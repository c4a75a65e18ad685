UPDATE wfc.placements
SET database = $4, generation = $5::bigint, moving_to = $6, move_phase = $7,
    move_detail = move_detail || $8::jsonb, changed = now()
WHERE namespace = $1 AND move_phase IS NOT NULL AND move_detail ->> 'epoch' = $2
    AND ($3::text IS NULL OR move_phase = $3)
RETURNING namespace, database, generation, moving_to, move_phase, move_detail, FALSE;
