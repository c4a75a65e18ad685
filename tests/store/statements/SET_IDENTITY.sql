INSERT INTO wfc.wfe_store AS o (owner_schema, namespace, database, generation, state)
VALUES ($1, $2, $3, $4, 'active')
ON CONFLICT (only_row) DO UPDATE SET generation = excluded.generation, state = 'active'
    WHERE (o.owner_schema, o.namespace, o.database, o.state)
        = (excluded.owner_schema, excluded.namespace, excluded.database, 'active');
