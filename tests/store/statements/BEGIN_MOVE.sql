INSERT INTO wfc.placements AS p (namespace, database, generation, moving_to, move_phase,
    move_detail)
VALUES ($1, $2, $3::bigint, $4, 'copying', $5::jsonb)
ON CONFLICT (namespace) DO UPDATE SET moving_to = excluded.moving_to,
    move_phase = excluded.move_phase,
    move_detail = coalesce(p.move_detail, '{}') || excluded.move_detail, changed = now()
WHERE p.move_phase IS NULL AND p.database = excluded.database
RETURNING namespace, database, generation, moving_to, move_phase, move_detail, FALSE;
