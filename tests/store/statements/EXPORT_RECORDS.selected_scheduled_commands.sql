SELECT r.command_name, r.data, r.execute_time
FROM wfc.scheduled_commands r
WHERE r.command_name = 'ProcessWorkflow' AND r.data IN (SELECT x.id FROM wfc.workflows x WHERE ($2::text[] IS NULL OR x.id = ANY ($2))
        AND ($3::text[] IS NULL OR x.status = ANY ($3))
        AND ($4::text[] IS NULL OR x.definition_id = ANY ($4))
        AND ($5::timestamptz IS NULL OR x.create_time >= $5)
        AND ($6::timestamptz IS NULL OR x.create_time < $6))
ORDER BY r.command_name COLLATE "C", r.data COLLATE "C"
OFFSET $1;
