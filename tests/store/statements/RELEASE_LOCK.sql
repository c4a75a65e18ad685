DELETE FROM wfc.locks WHERE n = $1 AND token = $2
RETURNING resource, expiry > now();
