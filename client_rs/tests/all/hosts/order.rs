//! What must wait for the result of a step.

use super::*;

static BUSY: AtomicUsize = AtomicUsize::new(0);

/// Sleeps, so that the other branch has subscribed; then it runs as long as the test says.
#[derive(Default)]
struct Hold;

#[async_trait]
impl StepBody for Hold {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.persistence_data.is_none() {
            let moment = Duration::from_millis(50);
            return Ok(ExecutionResult::sleep(moment, Some(json!("slept"))));
        }
        BUSY.store(1, Ordering::SeqCst);
        while BUSY.load(Ordering::SeqCst) != 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(ExecutionResult::next())
    }
}

/// An event comes for a branch of a workflow while a step of another branch runs.
#[tokio::test]
async fn an_event_waits_for_a_step_and_the_step_is_stored() {
    let fleet = unique("event");
    let name = unique("event");
    let definition = Steps::new()
        .start_with::<Work>()
        .parallel(|all| {
            all.branch(|b| {
                b.add_step_typed::<Gate>("gate", None);
            })
            .branch(|b| {
                b.add_step_typed::<Hold>("hold", None);
            })
        })
        .then::<Work>()
        .build(&name, 1);
    let (first_server, second_server) = (connect(&fleet).await, connect(&fleet).await);
    let first = prepare(&first_server, &[&definition]).await;
    let second = prepare(&second_server, &[&definition]).await;
    first.register_step::<Hold>().await;
    second.register_step::<Hold>().await;
    first.start().await.unwrap();
    second.start().await.unwrap();
    let id = first
        .start_workflow(&name, 1, json!({"key": name}))
        .await
        .unwrap();
    while BUSY.load(Ordering::SeqCst) != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.publish_event("go", &name, json!(1)).await.unwrap();
    // It is taken, and waits for the lock.
    let mut client = queues().await;
    loop {
        let request = v1::ListQueueItemsRequest {
            queue: format!("{fleet}.events"),
            ..Default::default()
        };
        let items = client.list_queue_items(request).await.unwrap().into_inner();
        let item = items.items[0].clone();
        if item.lease.is_none() && item.item.unwrap().blocked_by == [id.as_str()] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    BUSY.store(2, Ordering::SeqCst);
    let done = wait_for(&second, &id, is_complete).await;
    assert!(done.execution_pointers.iter().any(|p| p.event_published));
    assert_eq!(runs(&name), 2);
    wait_for_empty_queues(&fleet).await;
    first.stop().await;
    second.stop().await;
}

/// Starts a workflow, and its result is stored when the test says.
#[derive(Default)]
struct StartChild;

static STARTED: AtomicUsize = AtomicUsize::new(0);

#[async_trait]
impl StepBody for StartChild {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.execution_pointer.event_published {
            return Ok(ExecutionResult::next());
        }
        let child = context.workflow.data["child"].as_str().unwrap();
        let host = context.host_context.unwrap();
        let data = json!({"key": child});
        let id = host.start_workflow(child, 1, data, None).await?;
        STARTED.store(1, Ordering::SeqCst);
        while STARTED.load(Ordering::SeqCst) != 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let now = chrono::Utc::now();
        Ok(ExecutionResult::wait_for_event(
            "wfe.workflow.completed",
            id,
            now,
        ))
    }
}

/// Otherwise it could end before its parent waits for that.
#[tokio::test]
async fn a_workflow_that_a_step_starts_runs_when_the_steps_result_is_stored() {
    let fleet = unique("child");
    let (parent, child, other) = (unique("parent"), unique("child"), unique("other"));
    let definitions = [
        &Steps::new().start_with::<StartChild>().build(&parent, 1),
        &linear(&child, 1),
        &linear(&other, 1),
    ];
    let (first_server, second_server) = (connect(&fleet).await, connect(&fleet).await);
    let first = prepare(&first_server, &definitions).await;
    let second = prepare(&second_server, &definitions).await;
    first.register_step::<StartChild>().await;
    second.register_step::<StartChild>().await;
    first.start().await.unwrap();
    let data = json!({"child": child});
    let id = first.start_workflow(&parent, 1, data).await.unwrap();
    while STARTED.load(Ordering::SeqCst) != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    second.start().await.unwrap();
    // This one is behind the child in the queue.
    let behind = second.start_workflow(&other, 1, json!({})).await.unwrap();
    wait_for(&second, &behind, is_complete).await;
    assert_eq!(runs(&child), 0);
    STARTED.store(2, Ordering::SeqCst);
    wait_for(&second, &id, is_complete).await;
    assert_eq!(runs(&child), 1);
    wait_for_empty_queues(&fleet).await;
    first.stop().await;
    second.stop().await;
}
