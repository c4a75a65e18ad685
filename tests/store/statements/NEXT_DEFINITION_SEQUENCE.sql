INSERT INTO wfc.definition_sequences AS s (definition_id, next_num) VALUES ($1, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = s.next_num + 1
RETURNING next_num;
