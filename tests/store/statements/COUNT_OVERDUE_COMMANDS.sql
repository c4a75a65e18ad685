SELECT count(*) FROM (SELECT FROM wfc.scheduled_commands WHERE execute_time < floor(extract(epoch FROM $1::timestamptz) * 1000)::bigint
        AND (lease_expiry IS NULL OR lease_expiry <= now()) LIMIT $2) e;
