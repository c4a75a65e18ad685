//! Hosts that take long, die, or have lost what they held.

use super::*;

#[tokio::test]
async fn a_step_that_takes_longer_than_the_lease_runs_once_also_after_stop() {
    let fleet = unique("long");
    let name = unique("long");
    let definition = linear(&name, 2);
    let lease = Duration::from_secs(1);
    let connect = || async {
        let host = builder(&common::target(), &fleet).lease(lease);
        host.connect_host().await.unwrap()
    };
    let (first_server, second_server) = (connect().await, connect().await);
    let first = start(&first_server, &[&definition]).await;
    let data = json!({"key": name, "takes": 3000});
    let id = first.start_workflow(&name, 1, data).await.unwrap();
    while runs(&name) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.stop().await;
    let second = start(&second_server, &[&definition]).await;
    wait_for(&second, &id, is_complete).await;
    assert_eq!(runs(&name), 2);
    wait_for_empty_queues(&fleet).await;
    second.stop().await;
}

#[tokio::test]
async fn the_work_of_a_host_that_dies_is_done_by_another() {
    let fleet = unique("dies");
    let name = unique("dies");
    let definition = linear(&name, 2);
    let build = || builder(&common::target(), &fleet).lease(Duration::from_secs(1));
    let dying = tokio::runtime::Runtime::new().unwrap();
    let (builder, known, key) = (build(), definition.clone(), name.clone());
    let started = dying.spawn(async move {
        let server = builder.connect_host().await.unwrap();
        let host = start(&server, &[&known]).await;
        let name = known.id.clone();
        let data = json!({"key": key, "takes": 600_000});
        let id = host.start_workflow(&name, 1, data).await.unwrap();
        std::mem::forget(host);
        id
    });
    let id = started.await.unwrap();
    while runs(&name) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // In the middle of the step: no more renewals, and the connection is gone.
    dying.shutdown_background();
    let server = build().connect_host().await.unwrap();
    let store: &dyn PersistenceProvider = &server;
    // The second host does not take that long.
    let mut workflow = store.get_workflow_instance(&id).await.unwrap();
    workflow.data["takes"] = json!(0);
    store.persist_workflow(&workflow).await.unwrap();
    let host = start(&server, &[&definition]).await;
    wait_for(&host, &id, is_complete).await;
    assert_eq!(runs(&name), 3);
    wait_for_empty_queues(&fleet).await;
    host.stop().await;
}

#[tokio::test]
async fn a_host_that_has_lost_its_lease_stores_nothing() {
    let fleet = unique("fence");
    let slow = builder(&common::target(), &fleet)
        .lease(Duration::from_secs(1))
        .longest_step(Duration::ZERO);
    let slow = slow.connect_host().await.unwrap();
    let quick = connect(&fleet).await;
    let mut workflow = WorkflowInstance::new("fenced", 1, json!({"by": "nobody"}));
    workflow
        .execution_pointers
        .push(wfe::models::ExecutionPointer::new(0));
    let store: &dyn PersistenceProvider = &slow;
    let id = store.create_new_workflow(&workflow).await.unwrap();

    let step = async |host: &GrpcHost| {
        let taken = host.dequeue_work(QueueType::Workflow).await.unwrap();
        assert_eq!(taken.as_deref(), Some(id.as_str()));
        let store: &dyn PersistenceProvider = host;
        assert!(host.acquire_lock(&id).await.unwrap());
        // Not re-entrant.
        assert!(!host.acquire_lock(&id).await.unwrap());
        store.get_workflow_instance(&id).await.unwrap()
    };
    let mut by_slow = step(&slow).await;
    // It waits until the lease has expired.
    let mut by_quick = step(&quick).await;
    by_quick.data = json!({"by": "quick"});
    let store: &dyn PersistenceProvider = &quick;
    store.persist_workflow(&by_quick).await.unwrap();
    quick.release_lock(&id).await.unwrap();

    by_slow.data = json!({"by": "slow"});
    let store: &dyn PersistenceProvider = &slow;
    let error = store.persist_workflow(&by_slow).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("LEASE_LOST") || text.contains("REVISION_MISMATCH"),
        "{text}"
    );
    let stored = common::provider().await;
    let stored: &dyn PersistenceProvider = &stored;
    let stored = stored.get_workflow_instance(&id).await.unwrap();
    assert_eq!(stored.data, json!({"by": "quick"}));
}

#[tokio::test]
async fn a_dequeue_that_is_cancelled_loses_nothing() {
    let fleet = unique("cancel");
    let host = connect(&fleet).await;
    let cancelled = tokio::time::timeout(
        Duration::from_millis(300),
        host.dequeue_work(QueueType::Workflow),
    );
    assert!(cancelled.await.is_err());
    host.queue_work("w", QueueType::Workflow).await.unwrap();
    // It may have gone to the call that nobody waits for, which gives it back.
    let taken = host.dequeue_work(QueueType::Workflow).await.unwrap();
    assert_eq!(taken.as_deref(), Some("w"));
}

#[tokio::test]
async fn a_step_of_a_workflow_that_was_changed_meanwhile_is_run_again() {
    let host = connect(&unique("changed")).await;
    let store: &dyn PersistenceProvider = &host;
    let mut workflow = WorkflowInstance::new("changed", 1, json!({"by": "nobody"}));
    workflow
        .execution_pointers
        .push(wfe::models::ExecutionPointer::new(0));
    let id = store.create_new_workflow(&workflow).await.unwrap();
    let take = async || {
        let taken = host.dequeue_work(QueueType::Workflow).await.unwrap();
        assert_eq!(taken.as_deref(), Some(id.as_str()));
        assert!(host.acquire_lock(&id).await.unwrap());
        store.get_workflow_instance(&id).await.unwrap()
    };
    let mut by_step = take().await;
    let user = common::provider().await;
    let user: &dyn PersistenceProvider = &user;
    let mut by_user = user.get_workflow_instance(&id).await.unwrap();
    by_user.data = json!({"by": "user"});
    user.persist_workflow(&by_user).await.unwrap();
    by_step.data = json!({"by": "step"});
    let error = store.persist_workflow(&by_step).await.unwrap_err();
    assert!(error.to_string().contains("REVISION_MISMATCH"), "{error}");
    host.release_lock(&id).await.unwrap();
    // It comes back as it is now, and what is done with that is stored.
    let mut again = take().await;
    assert_eq!(again.data, json!({"by": "user"}));
    again.data = json!({"by": "both"});
    store.persist_workflow(&again).await.unwrap();
    host.release_lock(&id).await.unwrap();
    let stored = user.get_workflow_instance(&id).await.unwrap();
    assert_eq!(stored.data, json!({"by": "both"}));
}
