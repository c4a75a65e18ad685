SELECT id, next_execution FROM wfc.workflows
WHERE status = 'Runnable'
    AND next_execution <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
    AND (next_execution, id) >= (coalesce($3::bigint, -9223372036854775808), coalesce($4::text, ''))
    AND ($4::text IS NULL OR (next_execution, id) <> ($3::bigint, $4::text))
    AND definition_id = ANY ($2::text[])
ORDER BY next_execution, id
LIMIT $5;
