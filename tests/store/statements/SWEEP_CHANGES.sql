WITH feed AS MATERIALIZED (
    SELECT only_row FROM wfc.workflow_feed FOR UPDATE SKIP LOCKED
), oldest AS (
    SELECT ctid, xid, n, publish_time < now() - $1::float8 * interval '1 second' AS is_old
    FROM wfc.workflow_changes
    WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND EXISTS (SELECT FROM feed)
    ORDER BY xid, n
    LIMIT $2
), expired AS MATERIALIZED (
    SELECT ctid, xid, n
    FROM (SELECT ctid, xid, n, bool_and(is_old) OVER (ORDER BY xid, n) AS all_old FROM oldest) o
    WHERE all_old
), deleted AS (
    DELETE FROM wfc.workflow_changes WHERE ctid = ANY (ARRAY (SELECT ctid FROM expired))
), moved AS (
    UPDATE wfc.workflow_feed f SET floor_xid = last.xid, floor_n = last.n
    FROM (SELECT xid, n FROM expired ORDER BY xid DESC, n DESC LIMIT 1) last
    WHERE (f.floor_xid, f.floor_n) < (last.xid, last.n) AND f.cluster <> 'adopting'
)
SELECT count(*) FROM expired;
