UPDATE wfc.placements
SET move_detail = move_detail || jsonb_build_object(
        'epoch', (move_detail ->> 'epoch')::bigint + 1, 'released', FALSE),
    changed = now()
WHERE namespace = $1 AND move_phase IS NOT NULL AND move_detail ->> 'epoch' = $2
    AND ($3::boolean OR (changed < now() - $4::float8 * interval '1 second'
        OR move_detail ->> 'released' = 'true'))
RETURNING namespace, database, generation, moving_to, move_phase, move_detail, FALSE;
