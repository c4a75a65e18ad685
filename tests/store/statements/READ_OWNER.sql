SELECT o.owner_schema, o.namespace, coalesce(to_jsonb(o) ->> 'database', 'home'),
    coalesce((to_jsonb(o) ->> 'generation')::bigint, 0),
    coalesce(to_jsonb(o) ->> 'state', 'active') FROM wfc.wfe_store AS o;
