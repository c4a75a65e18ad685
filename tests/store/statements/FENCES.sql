SELECT (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM wfc.claim_epochs),
    (SELECT last_value FROM wfc.revision_floor);
