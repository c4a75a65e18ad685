SELECT namespace, database, generation, moving_to, move_phase, move_detail, (changed < now() - $1::float8 * interval '1 second'
        OR move_detail ->> 'released' = 'true') FROM wfc.placements
WHERE (move_phase IN ('switching', 'cleaning', 'aborting') AND (changed < now() - $1::float8 * interval '1 second'
        OR move_detail ->> 'released' = 'true'))
    OR move_phase = 'deleted'
    OR EXISTS (SELECT FROM jsonb_array_elements(move_detail -> 'remains') r
        WHERE (r ->> 'until')::float8 < extract(epoch FROM now()))
ORDER BY move_phase IS DISTINCT FROM 'switching',
    coalesce(move_phase, 'deleted') = 'deleted', changed
LIMIT 100;
