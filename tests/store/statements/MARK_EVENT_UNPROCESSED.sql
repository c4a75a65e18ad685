UPDATE wfc.events SET is_processed = FALSE WHERE id = $1 RETURNING id;
