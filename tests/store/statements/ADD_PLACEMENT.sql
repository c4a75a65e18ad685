INSERT INTO wfc.placements (namespace, database, generation, moving_to, move_phase, move_detail)
VALUES ($1, $2, $3::bigint, $4, $5, $6::jsonb)
ON CONFLICT DO NOTHING;
