SELECT namespace, database, generation, moving_to, move_phase, move_detail, (changed < now() - $2::float8 * interval '1 second'
        OR move_detail ->> 'released' = 'true') FROM wfc.placements WHERE namespace = $1;
