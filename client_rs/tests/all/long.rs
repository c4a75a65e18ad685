//! Long workflows are loaded by their header as long as nobody has changed them.

use chrono::{TimeDelta, Utc};
use serde_json::json;
use wfe_core::models::{ExecutionPointer, PointerStatus, WorkflowInstance};
use wfe_core::traits::WorkflowRepository;
use wfe_persistence_client::GrpcPersistenceProvider;
use wfe_postgres::PostgresPersistenceProvider;

use crate::common;

const LONG: usize = 64;

async fn provider(target: &str, keep: usize) -> GrpcPersistenceProvider {
    GrpcPersistenceProvider::builder(target)
        .keep(keep)
        .connect()
        .await
        .unwrap()
}

fn workflow(pointers: usize) -> WorkflowInstance {
    let mut instance = WorkflowInstance::new("order", 1, json!({"total": 12.5}));
    instance.name = instance.id.clone();
    instance.execution_pointers = (0..pointers).map(ExecutionPointer::new).collect();
    instance
}

fn same(a: &WorkflowInstance, b: &WorkflowInstance) {
    let json = |instance| serde_json::to_value(instance).unwrap();
    assert_eq!(json(a), json(b));
}

/// Marks a pointer past all revisions, which nobody who knows the workflow notices. So whoever sees
/// the mark has read the pointers.
async fn mark(url: &str, id: &str) {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let sql = "UPDATE wfc.execution_pointers SET retry_count = retry_count + 1
        WHERE workflow_id = $1 AND step_id = 1";
    let done = sqlx::query(sql).bind(id).execute(&pool).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    pool.close().await;
}

fn marks(instance: &WorkflowInstance) -> u32 {
    instance.execution_pointers[1].retry_count
}

#[tokio::test]
async fn pointers_are_read_once_and_then_when_somebody_has_written() {
    let url = common::new_database().await;
    let target = common::start_server(&["--db-url", &url]);
    let ours = provider(&target, 1 << 20).await;
    let other = provider(&target, 0).await;
    let direct = PostgresPersistenceProvider::new(&url).await.unwrap();
    let instance = workflow(LONG);
    let id = ours.create_new_workflow(&instance).await.unwrap();
    let load = |by: &GrpcPersistenceProvider| {
        let (by, id) = (by.clone(), id.clone());
        async move { by.get_workflow_instance(&id).await.unwrap() }
    };
    let first = load(&ours).await;
    mark(&url, &id).await;
    same(&load(&ours).await, &first);
    assert_eq!(marks(&load(&other).await), 1);

    // Another host writes through the server.
    let mut theirs = load(&other).await;
    theirs.execution_pointers[2].status = PointerStatus::Failed;
    other.persist_workflow(&theirs).await.unwrap();
    same(&load(&ours).await, &load(&other).await);
    assert_eq!(marks(&load(&ours).await), 1);

    // Another host writes past the server.
    let mut theirs = direct.get_workflow_instance(&id).await.unwrap();
    theirs.execution_pointers[0].status = PointerStatus::Complete;
    direct.persist_workflow(&theirs).await.unwrap();
    same(&load(&ours).await, &load(&other).await);

    // A shorter one is read.
    let mut fewer = load(&other).await;
    // (Not the last one: in which order they are now, the original did not say.)
    fewer
        .execution_pointers
        .retain(|pointer| pointer.step_id != 2);
    other.persist_workflow(&fewer).await.unwrap();
    assert_eq!(load(&ours).await.execution_pointers.len(), LONG - 1);
    mark(&url, &id).await;
    same(&load(&ours).await, &load(&other).await);
}

#[tokio::test]
async fn what_was_stored_is_loaded_as_if_it_were_read() {
    let url = common::new_database().await;
    let target = common::start_server(&["--db-url", &url]);
    let ours = provider(&target, 1 << 20).await;
    let other = provider(&target, 0).await;
    let id = ours.create_new_workflow(&workflow(LONG)).await.unwrap();
    let mut instance = ours.get_workflow_instance(&id).await.unwrap();
    type Change = fn(&mut WorkflowInstance);
    let changes: [(bool, Change); 5] = [
        (true, |w| w.data = json!({"total": 0.1, "x": 1e300})),
        (true, |w| {
            let pointer = &mut w.execution_pointers[3];
            pointer.end_time = Some(Utc::now() + TimeDelta::nanoseconds(7));
            pointer.sleep_until = pointer.end_time;
            pointer.outcome = Some(json!({"b": [1, u64::MAX], "a": null, "long key": "ü"}));
            pointer
                .extension_attributes
                .insert("a".into(), json!([i64::MIN]));
        }),
        (true, |w| {
            w.execution_pointers.push(ExecutionPointer::new(99))
        }),
        // Others are read.
        (false, |w| {
            w.execution_pointers[4].outcome = Some(json!([-0.0]))
        }),
        (false, |w| drop(w.execution_pointers.remove(5))),
    ];
    for (n, (is_kept, change)) in changes.into_iter().enumerate() {
        change(&mut instance);
        instance.next_execution = Some(n as i64);
        ours.persist_workflow(&instance).await.unwrap();
        let read = other.get_workflow_instance(&id).await.unwrap();
        mark(&url, &id).await;
        let loaded = ours.get_workflow_instance(&id).await.unwrap();
        assert_eq!(marks(&loaded) == marks(&read), is_kept, "{n}");
        if is_kept {
            same(&loaded, &read);
        }
        // So that the mark is what is stored, and known.
        instance = other.get_workflow_instance(&id).await.unwrap();
        ours.persist_workflow(&instance).await.unwrap();
        instance = ours.get_workflow_instance(&id).await.unwrap();
    }
}
