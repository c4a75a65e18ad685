UPDATE wfc.events SET is_processed = TRUE WHERE id = $1 RETURNING id;
