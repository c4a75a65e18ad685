//! Who does the work, and that all is done.

use super::*;

#[tokio::test]
async fn two_hosts_share_the_work_and_leave_nothing() {
    let fleet = unique("two");
    let (line, event, child) = (unique("line"), unique("event"), unique("child"));
    let key = unique("order");
    let nap = Steps::new()
        .start_with::<Work>()
        .parallel(|all| {
            all.branch(|b| {
                b.add_step_typed::<Nap>("slow", Some(json!(300)));
            })
            .branch(|b| {
                b.add_step_typed::<Work>("quick", None);
            })
        })
        .then::<Nap>()
        .then::<SubWorkflowStep>()
        .config(json!({"workflow_id": child, "version": 1, "inputs": {"key": line}}))
        .then::<Work>()
        .build(&line, 1);
    let waits = Steps::new()
        .start_with::<Work>()
        .wait_for("approved", &key)
        .then::<Work>()
        .build(&event, 1);
    let child = linear(&child, 2);
    let mut hosts = Vec::new();
    for _ in 0..2 {
        let server = connect(&fleet).await;
        hosts.push(start(&server, &[&nap, &waits, &child]).await);
    }
    let mut ids = Vec::new();
    for n in 0..8 {
        let data = json!({"key": line});
        let host = &hosts[n % 2];
        ids.push(host.start_workflow(&line, 1, data).await.unwrap());
        let data = json!({"key": event});
        let id = host.start_workflow(&event, 1, data).await.unwrap();
        wait_for(host, &id, has_pointer(PointerStatus::WaitingForEvent)).await;
        ids.push(id);
    }
    let data = json!({"by": "me"});
    hosts[0]
        .publish_event("approved", &key, data)
        .await
        .unwrap();
    for id in &ids {
        wait_for(&hosts[0], id, is_complete).await;
    }
    // Each step ran once: 2 in the line, 1 in a branch, 2 in the child; 2 around the event.
    assert_eq!((runs(&line), runs(&event)), (8 * 5, 8 * 2));
    wait_for_empty_queues(&fleet).await;
    for host in hosts {
        host.stop().await;
    }
    let mut locks = v1::lock_service_client::LockServiceClient::new(channel().await);
    for id in &ids {
        let request = v1::ListLocksRequest {
            resource_prefix: id.clone(),
            ..Default::default()
        };
        let held = locks.list_locks(request).await.unwrap().into_inner().locks;
        assert_eq!(held, []);
    }
}

#[tokio::test]
async fn what_a_host_drops_comes_back() {
    let fleet = unique("drop");
    let name = unique("known-to-one");
    let definition = linear(&name, 3);
    let server = connect(&fleet).await;
    let starter = prepare(&server, &[&definition]).await;
    let id = starter
        .start_workflow(&name, 1, json!({"key": name}))
        .await
        .unwrap();
    // It takes the workflow, and drops it, because it does not know the definition.
    let ignorant_server = connect(&fleet).await;
    let ignorant = start(&ignorant_server, &[]).await;
    let mut client = queues().await;
    loop {
        let request = v1::ListQueueItemsRequest {
            queue: format!("{fleet}.workflows"),
            ..Default::default()
        };
        let items = client.list_queue_items(request).await.unwrap().into_inner();
        if items.items[0].attempt > 0 && items.items[0].lease.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    starter.start().await.unwrap();
    wait_for(&starter, &id, is_complete).await;
    assert_eq!(runs(&name), 3);
    wait_for_empty_queues(&fleet).await;
    ignorant.stop().await;
    starter.stop().await;
}

#[tokio::test]
async fn what_a_host_cannot_do_another_one_does() {
    let fleet = unique("able");
    let name = unique("rare");
    let definition = Steps::new().start_with::<Rare>().build(&name, 1);
    let (unable_server, able_server) = (connect(&fleet).await, connect(&fleet).await);
    let unable = start(&unable_server, &[&definition]).await;
    let able = prepare(&able_server, &[&definition]).await;
    able.register_step::<Rare>().await;
    able.start().await.unwrap();
    for _ in 0..5 {
        let id = unable.start_workflow(&name, 1, json!({})).await.unwrap();
        wait_for(&able, &id, is_complete).await;
    }
    wait_for_empty_queues(&fleet).await;
    unable.stop().await;
    able.stop().await;
}

/// Panics the first time.
#[derive(Default)]
struct Panics;

#[async_trait]
impl StepBody for Panics {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let key = context.workflow.data["key"].as_str().unwrap().to_string();
        let runs = *RUNS
            .lock()
            .unwrap()
            .entry(key)
            .and_modify(|n| *n += 1)
            .or_insert(1);
        tokio::task::yield_now().await;
        assert!(runs > 1, "out of luck");
        Ok(ExecutionResult::next())
    }
}

#[tokio::test]
async fn a_guarded_step_that_panics_fails_and_is_run_again_by_the_same_host() {
    let fleet = unique("panics");
    let name = unique("panics");
    let server = connect(&fleet).await;
    let definition = Steps::new()
        .start_with::<Panics>()
        .on_error(wfe::models::ErrorBehavior::Retry {
            interval: Duration::from_millis(10),
            max_retries: 5,
        })
        .then::<Work>()
        .build(&name, 1);
    let host = prepare(&server, &[&definition]).await;
    let step = std::any::type_name::<Panics>();
    host.register_step_factory(step, wfe_persistence_client::guarded::<Panics>)
        .await;
    host.start().await.unwrap();
    let data = json!({ "key": name });
    let id = host.start_workflow(&name, 1, data.clone()).await.unwrap();
    let done = wait_for(&host, &id, is_complete).await;
    assert_eq!(done.execution_pointers[0].retry_count, 1);
    assert_eq!(runs(&name), 3);
    let errors = server.persistence().list_errors(Some(&id)).await.unwrap();
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0]
            .message
            .ends_with("the step panicked: out of luck"),
        "{errors:?}"
    );
    // Nothing is held any more, and the host goes on with others.
    let id = host.start_workflow(&name, 1, data).await.unwrap();
    wait_for(&host, &id, is_complete).await;
    wait_for_empty_queues(&fleet).await;
    host.stop().await;
}

/// So many workflows are run at once.
const AT_ONCE: usize = 3;

static MEETING: LazyLock<tokio::sync::Barrier> =
    LazyLock::new(|| tokio::sync::Barrier::new(AT_ONCE));

/// Ends when as many are there.
#[derive(Default)]
struct Meets;

#[async_trait]
impl StepBody for Meets {
    async fn run(&mut self, _: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        MEETING.wait().await;
        Ok(ExecutionResult::next())
    }
}

#[tokio::test]
async fn a_host_that_is_started_several_times_runs_as_many_workflows_at_once() {
    let fleet = unique("consumers");
    let (meets, line) = (unique("meets"), unique("line"));
    let server = connect(&fleet).await;
    let meet = Steps::new()
        .start_with::<Meets>()
        .then::<Work>()
        .build(&meets, 1);
    let host = prepare(&server, &[&meet, &linear(&line, 5)]).await;
    host.register_step::<Meets>().await;
    for _ in 0..AT_ONCE {
        host.start().await.unwrap();
    }
    let mut ids = Vec::new();
    for (name, count) in [(&meets, AT_ONCE), (&line, 12)] {
        for _ in 0..count {
            let data = json!({ "key": name });
            ids.push(host.start_workflow(name, 1, data).await.unwrap());
        }
    }
    for id in &ids {
        wait_for(&host, id, is_complete).await;
    }
    assert_eq!((runs(&meets), runs(&line)), (AT_ONCE, 12 * 5));
    wait_for_empty_queues(&fleet).await;
    host.stop().await;
}
