DELETE FROM wfc.placements
WHERE namespace = $1 AND database = $2 AND generation = $3::bigint
    AND move_phase IS NOT DISTINCT FROM $4;
