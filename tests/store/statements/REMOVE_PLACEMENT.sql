WITH seen AS (
    SELECT namespace, coalesce(jsonb_array_length(move_detail -> 'remains'), 0) > 0 AS remains
    FROM wfc.placements
    WHERE namespace = $1 AND database = $2 AND generation = $3::bigint
        AND move_phase IS NOT DISTINCT FROM $4
    FOR UPDATE
), kept AS (
    UPDATE wfc.placements p
    SET move_phase = 'deleted', moving_to = NULL, generation = generation + 1, changed = now(),
        move_detail = jsonb_build_object('remains', (
            SELECT jsonb_agg(r || '{"until": 0}')
            FROM jsonb_array_elements(move_detail -> 'remains') r))
    FROM seen WHERE p.namespace = seen.namespace AND remains
    RETURNING 1
), removed AS (
    DELETE FROM wfc.placements p USING seen WHERE p.namespace = seen.namespace AND NOT remains
    RETURNING 1
)
SELECT 1 FROM kept UNION ALL SELECT 1 FROM removed;
