-- loses locks that are held: SELECT count(*) FROM wfc.locks WHERE expiry > now()
DROP TABLE wfc.locks;
