SELECT count(*) FROM (SELECT FROM wfc.execution_errors WHERE error_time < $1::timestamptz LIMIT $2) e;
