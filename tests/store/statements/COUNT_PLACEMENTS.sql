SELECT count(*) FROM wfc.placements
WHERE database <> 'home' AND move_phase IS DISTINCT FROM 'deleted';
