SELECT w.id FROM unnest($1::text[]) AS g(id), LATERAL (
    SELECT id, status FROM wfc.workflows WHERE id = g.id LIMIT 1
) w
WHERE w.status <> $2;
