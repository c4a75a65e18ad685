WITH soon AS MATERIALIZED (
    SELECT count(*) >= $5 AS found FROM (
        SELECT error_time FROM wfc.execution_errors
        WHERE ($4::bigint IS NULL OR id < $4)
        ORDER BY id DESC
        LIMIT 10 * $5::bigint
    ) e
    WHERE ($2::timestamptz IS NULL OR error_time >= $2)
        AND ($3::timestamptz IS NULL OR error_time < $3)
), few AS MATERIALIZED (
    SELECT id FROM wfc.execution_errors
    WHERE $1::text IS NULL AND num_nonnulls($2::timestamptz, $3::timestamptz) > 0 AND NOT (SELECT found FROM soon)
        AND ($1::text IS NULL OR workflow_id = $1)
        AND ($2::timestamptz IS NULL OR error_time >= $2)
        AND ($3::timestamptz IS NULL OR error_time < $3) AND ($4::bigint IS NULL OR id < $4)
    LIMIT 50001
), are_few AS MATERIALIZED (
    SELECT count(*) <= 50000 AS yes FROM few
)
SELECT error_time, workflow_id, execution_pointer_id, message, id
FROM (
    (
        SELECT * FROM wfc.execution_errors
        WHERE $1::text IS NULL AND num_nonnulls($2::timestamptz, $3::timestamptz) > 0 AND NOT (SELECT found FROM soon) AND (SELECT yes FROM are_few)
            AND id = ANY (ARRAY (SELECT id FROM few ORDER BY id DESC LIMIT $5))
        ORDER BY id DESC
        LIMIT $5
    ) UNION ALL (
        SELECT * FROM wfc.execution_errors
        WHERE ($1::text IS NULL OR workflow_id = $1)
        AND ($2::timestamptz IS NULL OR error_time >= $2)
        AND ($3::timestamptz IS NULL OR error_time < $3) AND ($4::bigint IS NULL OR id < $4)
            AND (NOT ($1::text IS NULL AND num_nonnulls($2::timestamptz, $3::timestamptz) > 0 AND NOT (SELECT found FROM soon)) OR NOT (SELECT yes FROM are_few))
        ORDER BY id DESC
        LIMIT $5
    )
) e
ORDER BY id DESC
LIMIT $5;
