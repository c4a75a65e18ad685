//! What is in the stores before anything is measured.

use sqlx::Executor;

/// Fills a store, using the columns that both sides have. One workflow in a hundred is due, one
/// event in a hundred unprocessed, at most a thousand of each.
pub async fn fill(url: &str, rows: u64) {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let due = (rows / 100).clamp(1, 1000);
    let statements = [
        format!(
            "INSERT INTO wfc.workflows (id, name, definition_id, version, status, data,
               next_execution, create_time)
             SELECT 'fill-' || i, 'fill-' || i, 'compare', 1,
               CASE WHEN i <= {due} THEN 'Runnable' ELSE 'Complete' END,
               '{{\"order\": 1}}', CASE WHEN i <= {due} THEN i END, now()
             FROM generate_series(1, {rows}) i"
        ),
        format!(
            "INSERT INTO wfc.execution_pointers (id, workflow_id, step_id, status, step_name,
               event_published, retry_count, children, scope, extension_attributes)
             SELECT 'p-' || i || '-' || p, 'fill-' || i, p, 'Complete', 'step',
               false, 0, '[]', '[]', '{{}}'
             FROM generate_series(1, {rows}) i, generate_series(1, 3) p"
        ),
        format!(
            "INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time,
               is_processed)
             SELECT 'fill-' || i, 'kind', 'key-' || i, '1', now(), i > {due}
             FROM generate_series(1, {rows}) i"
        ),
        format!(
            "INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id,
               execution_pointer_id, event_name, event_key, subscribe_as_of)
             SELECT 'fill-' || i, 'fill-' || i, 0, 'p', 'kind', 'key-' || i, now()
             FROM generate_series(1, {rows}) i"
        ),
        "VACUUM ANALYZE".to_string(),
    ];
    for statement in statements {
        pool.execute(statement.as_str()).await.unwrap();
    }
    pool.close().await;
}
