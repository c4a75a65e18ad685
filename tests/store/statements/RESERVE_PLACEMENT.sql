INSERT INTO wfc.placements (namespace, database, generation, move_phase)
VALUES ($1, $2, $3, 'creating')
ON CONFLICT (namespace) DO UPDATE SET database = excluded.database,
    generation = excluded.generation, move_phase = excluded.move_phase, changed = now();
