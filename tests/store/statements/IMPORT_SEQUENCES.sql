INSERT INTO wfc.definition_sequences AS s (definition_id, next_num)
SELECT g.definition_id, g.next_num
FROM jsonb_to_recordset($1::jsonb) AS g(
    definition_id text, next_num bigint)
ORDER BY g.definition_id
ON CONFLICT (definition_id) DO UPDATE SET next_num = excluded.next_num
    WHERE s.next_num < excluded.next_num
RETURNING 1;
