SELECT id, next_execution FROM wfc.workflows
WHERE status = 'Runnable'
    AND next_execution <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
    AND (next_execution, id) >= (coalesce($2::bigint, -9223372036854775808), coalesce($3::text, ''))
    AND ($3::text IS NULL OR (next_execution, id) <> ($2::bigint, $3::text))
ORDER BY next_execution, id
LIMIT $4;
