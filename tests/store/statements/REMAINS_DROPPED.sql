UPDATE wfc.placements
SET move_detail = jsonb_set(move_detail, '{remains}', coalesce((
        SELECT jsonb_agg(r) FROM jsonb_array_elements(move_detail -> 'remains') r
        WHERE coalesce(r ->> 'schema', r ->> 'guard') <> $2), '[]'))
WHERE namespace = $1;
